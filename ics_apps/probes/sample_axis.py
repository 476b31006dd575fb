"""Where the samples of a batch lie in a tensor, and one sample among them; what they do to each other is `leakage`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ics_apps.probes.preserve import ProbeError


@dataclass(frozen=True, slots=True)
class SampleAxis:
    """The samples of one batch.

    Attributes:
        axis: where they lie in the inputs, and wherever this axis has their number.
        size: B, at least 2.
        row: the sample that is looked at.
    """

    axis: int
    size: int
    row: int

    @classmethod
    def of(cls, inputs: Any, axis: int = 0, row: int | None = None) -> Self:
        """Read the size from the first tensor of the inputs that has the axis, one with fractions before integers.

        Args:
            inputs: tensors, nested in any way, and others.
            axis: >= 0.
            row: the sample that is looked at; None for the middle one.

        Raises:
            ProbeError: no tensor with the axis, or a batch of one.
            ValueError: an axis or a sample out of range.

        Example:
            >>> SampleAxis.of({"x": torch.zeros(8, 3), "labels": torch.zeros(8, dtype=torch.int64)})
            SampleAxis(axis=0, size=8, row=4)
        """
        if axis < 0:
            raise ValueError(f"batch_axis is {axis}; give at least 0, counted from the front.")
        found = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim > axis and is_data(x)]
        if not found:
            raise ProbeError(f"No input tensor has an axis {axis}: give the batch's tensors, or another `batch_axis`.")
        size = next((x for x in found if x.is_floating_point()), found[0]).shape[axis]
        if size < 2:
            raise ProbeError(f"A batch of {size} has no other samples to depend on: give at least two.")
        if row is not None and not 0 <= row < size:
            raise ValueError(f"sample is {row}; the batch of {size} allows 0 to {size - 1}.")
        return cls(axis, size, size // 2 if row is None else row)

    def axes_of(self, x: Tensor) -> tuple[int, ...]:
        """The axes of a tensor along which its samples may lie, the likeliest first; none if there is no telling.

        Example:
            >>> samples = SampleAxis(axis=0, size=8, row=0)
            >>> [samples.axes_of(torch.zeros(shape)) for shape in [(8, 5), (5, 8), (8, 8), (16, 8), (5, 5)]]
            [(0,), (1,), (0, 1), (), ()]
        """
        equal = [axis for axis, length in enumerate(x.shape) if length == self.size]
        if self.axis in equal:
            return (self.axis, *(axis for axis in equal if axis != self.axis))
        # (B T, C): several rows a sample, and C may be B by chance.
        several = x.ndim > self.axis and x.shape[self.axis] % self.size == 0
        return () if several else tuple(equal)

    def part(self, x: Tensor, axis: int | None = None) -> Tensor:
        """The sample that is looked at, a view."""
        return x.select(self.axis if axis is None else axis, self.row)

    def with_others_replaced(self, x: Tensor) -> Tensor:
        """A tensor in which each other sample is the next other one, and the last a copy of this one.

        A tensor without the axis stays as it is.

        Example:
            >>> SampleAxis(axis=0, size=4, row=1).with_others_replaced(torch.tensor([10, 11, 12, 13])).tolist()
            [12, 11, 13, 11]
        """
        if x.ndim <= self.axis or x.shape[self.axis] != self.size:
            return x
        others = [place for place in range(self.size) if place != self.row]
        taken = torch.arange(self.size)
        taken[others] = torch.tensor([*others[1:], self.row])
        return x.index_select(self.axis, taken.to(x.device))

    def norms(self, x: Tensor, axis: int) -> Tensor:
        """The Euclidean norm of each sample, `(B,)`, in float64."""
        rows = x.detach().movedim(axis, 0).reshape(self.size, -1)
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return norms.cpu()

    def ratio(self, norms: Tensor) -> float:
        """R: the mean norm of the other samples over that of this one.

        Returns:
            0 where the others are 0, infinite where this one is 0 and another is not, NaN where all are 0 or a norm is
            not finite.

        Example:
            >>> SampleAxis(axis=0, size=3, row=1).ratio(torch.tensor([1.0, 4.0, 3.0]))
            0.5
        """
        own = float(norms[self.row])
        others = float(torch.cat([norms[: self.row], norms[self.row + 1 :]]).mean())
        if not math.isfinite(own + others) or own == others == 0:
            return math.nan
        return others / own if own else math.inf

    def refusal(self, outputs: Sequence[Tensor]) -> ProbeError:
        """The error about outputs in which no sample can be told."""
        shapes = ", ".join(str(tuple(x.shape)) for x in outputs) or "no tensor"
        return ProbeError(
            f"The outputs ({shapes}) have no axis of the batch's {self.size} samples: name a module whose output keeps "
            "samples apart, such as the network before a loss over the batch, or the inputs' `batch_axis`."
        )


def is_data(x: Any) -> bool:
    """Whether it is a plain tensor of numbers: floating point or integers, neither a mask nor sparse nor nested."""
    return isinstance(x, Tensor) and x.layout is torch.strided and not x.is_complex() and x.dtype is not torch.bool
