"""Hold parts of a model fixed while a Trainer fits: weights, running statistics and dropout. No file is read here."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ics_apps.nearest import did_you_mean


class FreezeLayers(Callback):
    """Train with parts of the model fixed, by name.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.FreezeLayers
              init_args:
                freeze: [net.encoder.*]
                unfreeze_at_epoch: 2

    A pattern is a dotted name, as `named_modules` and `named_parameters` give it, or a shell pattern; `*` takes dots
    as well. A module that matches is fixed with all that is in it: its parameters get no gradient and no weight decay,
    and it runs in evaluation mode, so that batch norm keeps its running statistics and dropout does nothing. A pattern
    that matches parameters only, such as `*.bias`, fixes these and leaves the modes alone.

    The optimizer keeps all parameters (those without gradient are passed over), so `unfreeze_at_epoch` needs no new
    parameter group and a checkpoint of a frozen run can be continued with other patterns. After `fit` the model is as
    free as it was before.

    It costs nothing, and spares the backward pass of what is fixed at the input's end.

    Args:
        freeze: Names or patterns, at least one; each has to match something.
        unfreeze_at_epoch: The epoch, from 0, at whose start all is set free; None: never.

    Attributes:
        modules: Names of the modules held in evaluation mode.
        parameters: Names of the parameters held fixed.

    Raises:
        ValueError: No pattern, an epoch below 1; at the start of `fit` a pattern that matches nothing, patterns that
            leave nothing to train, or several processes without `ddp_find_unused_parameters_true`.

    Example:
        >>> FreezeLayers(["encoder.*"], unfreeze_at_epoch=0)
        Traceback (most recent call last):
        ...
        ValueError: FreezeLayers.unfreeze_at_epoch is 0; give at least 1, or leave out the callback.

    Reference: ours; Lightning's `BaseFinetuning` wants a subclass for each model and trains frozen statistics on
    unless told otherwise. `RecomputeStatistics` re-estimates fixed statistics too: use one of the two.
    """

    def __init__(self, freeze: Sequence[str], unfreeze_at_epoch: int | None = None) -> None:
        super().__init__()
        if isinstance(freeze, str) or not freeze:
            raise ValueError(f"FreezeLayers.freeze is {freeze!r}; give a list of names or patterns, ['net.encoder.*'].")
        if unfreeze_at_epoch is not None and unfreeze_at_epoch < 1:
            raise ValueError(
                f"FreezeLayers.unfreeze_at_epoch is {unfreeze_at_epoch}; give at least 1, or leave out the callback."
            )
        self.freeze = tuple(freeze)
        self.unfreeze_at_epoch = unfreeze_at_epoch
        self.modules: list[str] = []
        self.parameters: list[str] = []
        self._held: list[nn.Module] = []
        self._was_training: list[nn.Module] = []
        self._was_trainable: list[nn.Parameter] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what matches, and fix it; nets built in `configure_model` are there by now."""
        _refuse_strict_processes(trainer)
        modules = {name: module for name, module in pl_module.named_modules() if name}
        parameters = dict(pl_module.named_parameters())
        matched = [_matches(pattern, modules, parameters) for pattern in self.freeze]
        roots = {name for names in matched for name in names}
        self.modules = [name for name in modules if _is_inside(name, roots)]
        self.parameters = [name for name in parameters if _is_inside(name, roots)]
        trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if set(trainable) <= set(self.parameters):
            raise ValueError(f"FreezeLayers.freeze is {list(self.freeze)}, which leaves no parameter to train.")
        self._held = [modules[name] for name in self.modules]
        self._was_training = [module for module in self._held if module.training]
        self._was_trainable = [parameters[name] for name in self.parameters if parameters[name].requires_grad]
        for parameter in self._was_trainable:
            parameter.requires_grad_(False)
        values = sum(parameters[name].numel() for name in self.parameters)
        everything = sum(parameter.numel() for parameter in parameters.values())
        until = "" if self.unfreeze_at_epoch is None else f" until epoch {self.unfreeze_at_epoch}"
        rank_zero_info(
            f"FreezeLayers holds {', '.join(_tops(self.modules) or self.parameters)}{until}: {len(self.parameters)} "
            f"of {len(parameters)} parameters ({values:,} of {everything:,} values), {len(self.modules)} modules."
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the modes; not earlier, or Lightning warns of modules in evaluation mode."""
        self._hold()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set all free if it is time; a run that is continued may begin later."""
        if self._was_trainable and trainer.current_epoch >= (self.unfreeze_at_epoch or float("inf")):
            self._set_free()
            rank_zero_info(f"FreezeLayers sets all free at epoch {trainer.current_epoch}.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Hold the modes, whatever has called `train()` on the model since."""
        self._hold()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the model as free as it was."""
        self._set_free()

    def _hold(self) -> None:
        for module in self._held:
            module.training = False

    def _set_free(self) -> None:
        for module in self._was_training:
            module.training = True
        for parameter in self._was_trainable:
            parameter.requires_grad_(True)
        self._held, self._was_training, self._was_trainable = [], [], []


def _matches(pattern: str, modules: dict[str, nn.Module], parameters: dict[str, nn.Parameter]) -> list[str]:
    names = [name for name in (*modules, *parameters) if fnmatchcase(name, pattern)]
    if not names:
        plain = pattern.rstrip("*").rstrip(".")
        raise ValueError(
            f"FreezeLayers.freeze: {pattern!r} matches no module and no parameter{did_you_mean(plain, modules)}"
        )
    return names


def _is_inside(name: str, roots: set[str]) -> bool:
    words = name.split(".")
    return any(".".join(words[: length + 1]) in roots for length in range(len(words)))


def _tops(names: Sequence[str]) -> list[str]:
    """Those names that lie in no other of them."""
    return [name for name in names if not _is_inside(name.rpartition(".")[0], set(names))]


def _refuse_strict_processes(trainer: Trainer) -> None:
    """DDP has counted the parameters by now, and would wait for gradients that never come."""
    if trainer.world_size == 1:
        return
    options: dict[str, object] = getattr(trainer.strategy, "_ddp_kwargs", {})
    if not options.get("find_unused_parameters"):
        raise ValueError(
            f"FreezeLayers on {trainer.world_size} processes needs trainer.strategy ddp_find_unused_parameters_true."
        )
