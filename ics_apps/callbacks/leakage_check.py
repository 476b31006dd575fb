"""Whether samples of a batch see each other, while a Trainer fits: schedule and file; figures: `probes.leakage`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ics_apps.callbacks.probe_callback import Measured, Occasion, ProbeCallback, defined
from ics_apps.callbacks.training_loss import unlogged
from ics_apps.nearest import did_you_mean
from ics_apps.probes.leakage import Leakage, gradient_leakage
from ics_apps.probes.preserve import ProbeError
from ics_apps.probes.sample_axis import is_data
from ics_apps.probes.selection import plain_name

Reaction = Literal["warn", "raise"]


class LeakageError(RuntimeError):
    """Samples of a batch see each other, and `on_leak` is "raise"."""


class LeakageCheck(ProbeCallback):
    """Check that one sample's output does not depend on the other samples of its batch; name what mixes them.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.LeakageCheck
              init_args:
                module: net
                allow: [BatchNorm2d]
                on_leak: raise

    The network is checked on the very inputs that a training step gives it, in training mode, after that step: nothing
    needs an example input, and modules that step their optimizers by hand are checked like others. Batch norm that is
    training does mix; if that is wanted, `allow` says so, and its rows stay in the table. Mixing that has no gradient
    is not seen, see `ics_apps.probes.perturbation`.

    It writes `probes/leakage.csv`, one row a module, with the ratio R of each module's own code (see
    `gradient_leakage`; empty where it could not be read), and logs `leakage/ratio`, that of the network as a whole, and
    `leakage/sources`, the number of modules that mix and are not allowed to.

    A measurement costs one forward and one or two backward passes, about one to three training steps; at the default
    of every 1000 steps that is below 1 %. It keeps a copy of the network's input until the end of the step.

    Args:
        every_n_steps: optimizer steps between two checks, >= 1; the first step is checked.
        module: dotted name of the network within the LightningModule; None for the first module with weights to train
            that a step calls with a tensor. Of a GAN name the discriminator.
        allow: modules that may mix: dotted names, name patterns, class names; see `gradient_leakage`.
        on_leak: "warn", once for the same modules, or "raise" a `LeakageError`.
        batch_axis: axis of the network's inputs along which samples lie, >= 0.
        dirpath: see `ProbeCallback`.

    Raises:
        ValueError: an argument out of range; when training starts, a `module` that does not exist.

    Example:
        >>> LeakageCheck(on_leak="stop")
        Traceback (most recent call last):
        ...
        ValueError: on_leak is 'stop'; give 'warn' or 'raise'.

    Reference: as `ics_apps.probes.leakage.gradient_leakage`.
    """

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {"leakage": ("module", "order", "ratio", "is_source", "allowed")}

    def __init__(
        self,
        every_n_steps: int = 1000,
        module: str | None = None,
        allow: str | Sequence[str] = (),
        on_leak: Reaction = "warn",
        batch_axis: int = 0,
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__(every_n_steps, dirpath=dirpath)
        if on_leak not in get_args(Reaction):
            raise ValueError(f"on_leak is {on_leak!r}; give 'warn' or 'raise'.")
        if batch_axis < 0:
            raise ValueError(f"batch_axis is {batch_axis}; give at least 0, counted from the front.")
        self.module = module
        self.allow = (allow,) if isinstance(allow, str) else tuple(allow)
        self.on_leak = on_leak
        self.batch_axis = batch_axis
        self._capture: _Capture | None = None  # while a step runs that is checked
        self._told: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file; see that the module exists."""
        super().on_train_start(trainer, pl_module)
        self._told = set()
        _candidates(pl_module, self.module)

    def measure(self, occasion: Occasion) -> None:
        """Keep what the step gives to the network."""
        self._capture = _Capture(occasion.module, self.module, self.batch_axis, occasion.trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the network on it."""
        if self._capture is None:
            return
        capture, self._capture = self._capture, None
        capture.close()
        found: list[Leakage] = []
        with unlogged(pl_module):
            self._attempt(trainer, lambda: self._measured(trainer, capture, found), capture.step)
        # Not inside the attempt, which lets no error end the training.
        for leakage in found:
            self._tell(leakage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._release()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it took; take the hooks off a step that was not finished."""
        super().on_train_end(trainer, pl_module)
        self._release()

    def _occasion(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> Occasion:
        # Not the loss: a module that steps its optimizers by hand need not have one.
        return Occasion(trainer, pl_module, batch, batch_idx, _no_loss, 1.0)

    def _measured(self, trainer: Trainer, capture: _Capture, kept: list[Leakage]) -> Measured:
        if capture.call is None:
            network = self.module or "a module with weights to train"
            raise ProbeError(
                f"No call of {network} with a tensor was seen in this step: name a `module` that the step calls, "
                "outside compiled ones."
            )
        name, module, args, kwargs = capture.call
        with trainer.strategy.precision_plugin.train_step_context():
            found = gradient_leakage(module, args, kwargs, batch_axis=self.batch_axis, allow=self.allow, name=name)
        kept.append(found)
        rows = [defined(dataclasses.asdict(row)) for row in found.modules]
        scalars = {"leakage/ratio": found.ratio, "leakage/sources": float(len(found.sources))}
        return Measured({"leakage": rows}, defined(scalars))

    def _tell(self, found: Leakage) -> None:
        if found.sources and self.on_leak == "raise":
            raise LeakageError(found.describe())
        new = {source.module for source in found.sources} - self._told
        if new:
            self._told |= new
            rank_zero_warn(f"LeakageCheck: {found.describe()}")

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.close()
            self._capture = None


class _Capture:
    """The first call of the network with a tensor: its name, the module and copies of what it was given.

    Args:
        pl_module: the module that trains.
        name: of the network; None for any with weights to train.
        batch_axis: tensors need to have it.
        step: optimizer steps done.
    """

    def __init__(self, pl_module: LightningModule, name: str | None, batch_axis: int, step: int) -> None:
        self.step = step
        self.call: tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]] | None = None
        self._axis = batch_axis
        self._handles = ExitStack()
        self._names = _candidates(pl_module, name)
        for module in self._names:
            self._handles.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)

    def close(self) -> None:
        """Take the hooks off."""
        self._handles.close()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A teacher or an augmentation runs without gradients.
        if self.call is not None or not torch.is_grad_enabled() or _is_step(module):
            return
        if any(is_data(x) and x.ndim > self._axis for x in tree_leaves((args, kwargs))):
            own_args, own_kwargs = tree_map_only(Tensor, lambda x: x.detach().clone(), (args, kwargs))
            self.call = self._names[module], getattr(module, "_orig_mod", module), own_args, own_kwargs


def _candidates(pl_module: LightningModule, name: str | None) -> dict[nn.Module, str]:
    """The modules that may be the network, with their names."""
    named: dict[str, nn.Module] = {}
    for path, module in pl_module.named_modules():
        named.setdefault(plain_name(path), module)  # a compiled module stands for what it wraps
    if name is not None:
        if name not in named:
            raise ValueError(
                f"LeakageCheck.module is {name!r}, which {type(pl_module).__name__} does not have"
                f"{did_you_mean(name, named)}"
            )
        return {named[name]: name}
    trained = ((path, module) for path, module in named.items() if any(p.requires_grad for p in module.parameters()))
    return {module: path for path, module in trained}


def _is_step(module: nn.Module) -> bool:
    """Whether DDP runs the whole training step, as if it were the forward of the LightningModule."""
    return isinstance(module, LightningModule) and not inspect.ismethod(module.forward)


def _no_loss() -> Tensor:
    raise RuntimeError("A leakage check takes no loss.")
