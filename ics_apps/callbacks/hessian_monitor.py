"""The Hessian of the loss while a Trainer fits: the schedule and the files; the figures are `probes.spectrum`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback, defined
from ics_apps.probes.spectrum import Curvature, check_budget, curvature


class HessianMonitor(ProbeCallback):
    """Watch the curvature of the loss: largest eigenvalues, negative ones, trace, spectral density.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.HessianMonitor
              init_args:
                every_n_steps: 6000

    The Hessian is that of the loss of the batch about to be trained on, in the mode that is trained: batch norm uses
    the statistics of the batch. It is one batch's: compare runs at the same batch size. lambda_max of weights before a
    norm falls as these grow, so compare it between norms beside the norms of such weights.

    It writes `probes/hessian.csv`, one row a measurement, and `probes/spectral_density.csv`, 201 points each, and logs
    the first one's figures as `hessian/<figure>`. Each eigenvalue comes with a bound: some eigenvalue lies in value +-
    bound. A figure that has not converged (`lambda_ratio`), or is not defined, is left empty. `sharpness_limit` is
    2 / lr, lr the largest of the optimizers: full-batch gradient descent without momentum diverges along an eigenvector
    above it, and hovers there. With batches, momentum, or Adam, it is a scale to compare with, no limit.

    A product with the Hessian costs two to three and a half training steps, so a measurement costs at most about 250 of
    them; at the default of every 6000 steps that is 4 %. It keeps the graph of the gradient, about twice the memory of
    the activations, and up to 40 vectors of all weights (`max_products` - 15 (`starts` - 1)).

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.
        max_products: the most products with the Hessian in one measurement, at least 15 a start.
        starts: random starts for the trace and the density, >= 1. Their errors fall with the root.
        tolerance: an eigenvalue has converged if its bound is at most this share of it, >= 0.
        loss: see `ProbeCallback`.
        dirpath: see `ProbeCallback`.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> HessianMonitor(max_products=5)
        Traceback (most recent call last):
        ...
        ValueError: max_products is 5; 3 starts need at least 45.

    Reference: Ghorbani et al. 2019 (1901.10159); 2 / lr: Cohen et al. 2021 (2103.00065).
    """

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "hessian": (
            "lambda_max",
            "lambda_max_bound",
            "lambda_min",
            "lambda_min_bound",
            "lambda_min_converged",
            "lambda_ratio",
            "trace",
            "trace_error",
            "negative_mass",
            "effective_rank",
            "damped_condition",
            "damping",
            "products",
            "sharpness_limit",
        ),
        "spectral_density": ("eigenvalue", "density"),
    }

    def __init__(
        self,
        every_n_steps: int = 6000,
        max_products: int = 70,
        starts: int = 3,
        tolerance: float = 1e-3,
        loss: str | None = None,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__(every_n_steps, loss, dirpath)
        check_budget(max_products, starts)
        if tolerance < 0:
            raise ValueError(f"tolerance is {tolerance}; give at least 0.")
        self.max_products = max_products
        self.starts = starts
        self.tolerance = tolerance

    def measure(self, occasion: Occasion) -> Measured:
        """The figures and the density at this step."""
        with occasion.objective() as objective:
            found = curvature(objective, self.max_products, self.starts, self.tolerance)
        row = {**_figures(found), "sharpness_limit": 2 / lr if (lr := occasion.largest_lr) > 0 else math.nan}
        known = defined(row)
        points = zip(*(axis.tolist() for axis in found.spectrum.density()), strict=True)
        density = [{"eigenvalue": eigenvalue, "density": share} for eigenvalue, share in points]
        scalars = {f"hessian/{name}": float(value) for name, value in known.items()}
        return Measured({"hessian": [known], "spectral_density": density}, scalars)


def _figures(found: Curvature) -> dict[str, Any]:
    largest, smallest, spectrum = found.extremes.largest[0], found.extremes.smallest, found.spectrum
    return {
        "lambda_max": largest.value,
        "lambda_max_bound": largest.bound,
        "lambda_min": smallest.value,
        "lambda_min_bound": smallest.bound,
        "lambda_min_converged": smallest.converged,
        "lambda_ratio": found.extremes.ratio,
        "trace": spectrum.trace,
        "trace_error": spectrum.trace_error,
        "negative_mass": spectrum.negative_mass,
        "effective_rank": spectrum.effective_rank,
        "damped_condition": found.damped_condition,
        "damping": spectrum.damping,
        "products": found.products,
    }
