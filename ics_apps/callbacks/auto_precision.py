"""Pick the fastest of {contiguous, channels_last} x {fp32, bf16} by timing real training steps, and say which it was.

The choice is not a matter of taste on CPUs: bf16 with channels_last is 2.4-3.5 times faster than fp32 on a processor
with bf16 instructions, and 10-20 times slower on one without.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn
from torchmetrics import Metric

from ics_apps.runs.atomic import write_text_atomically
from ics_apps.runs.layout import PRECISION

PrecisionName = Literal["fp32", "bf16"]
FormatName = Literal["contiguous", "channels_last"]

TIMED_STEPS: Final = 2
# A candidate whose first, cold step takes this many times the best warm step cannot win.
HOPELESS: Final = 3.0


@dataclass(frozen=True)
class Choice:
    """One way to run a step."""

    precision: PrecisionName
    memory_format: FormatName


class AutoPrecision(Callback):
    """Time 2-3 training steps of each candidate at the start of `fit` and train with the fastest.

    YAML::

        trainer:
          callbacks:
            - class_path: ics_apps.callbacks.AutoPrecision

    The model, its buffers, gradients, metric states and the random generators are restored afterwards, so that a run
    with this callback equals a run in which the chosen precision was set by hand. The choice is kept in
    `precision.json` of the run directory, and a resumed run takes it from there instead of timing again. Validation
    inside `fit` runs as training does; `test` and `predict` run in fp32.

    Not timed, and left as they are: modules with manual optimization, and trainers with a precision set by hand
    (`trainer.precision` other than 32).

    Args:
        candidates: The precisions to try. bf16 is skipped on a processor without bf16 instructions.

    Source: measured by this project; see `benchmarks/`.
    """

    def __init__(self, candidates: tuple[PrecisionName, ...] = ("fp32", "bf16")) -> None:
        unknown = [name for name in candidates if name not in ("fp32", "bf16")]
        if unknown or not candidates:
            raise ValueError(f"AutoPrecision.candidates are {list(candidates)}; allowed are 'fp32' and 'bf16'.")
        self.candidates = tuple(candidates)
        self.choice: Choice | None = None
        self.seconds: dict[Choice, float] = {}
        self._plugin_before: Precision | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose and apply."""
        if trainer.precision not in ("32-true", "32") or not pl_module.automatic_optimization:
            return
        record = (
            Path(trainer.log_dir or trainer.default_root_dir) / PRECISION
        )  # `log_dir` is asked of all ranks at once
        kept = _kept_choice(record, trainer.strategy.root_device)
        self.choice = kept or self._fastest(trainer, pl_module)
        if kept is None and trainer.is_global_zero:
            write_text_atomically(record, json.dumps(asdict(self.choice)) + "\n")
        if trainer.is_global_zero:
            print(self._sentence(was_kept=kept is not None), flush=True)  # noqa: T201
        self._plugin_before = trainer.strategy.precision_plugin
        _apply(trainer, pl_module, self.choice)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the trainer its own precision back for `test` and `predict`."""
        if self._plugin_before is not None:
            trainer.strategy.precision_plugin = self._plugin_before
            self._plugin_before = None

    def _fastest(self, trainer: Trainer, pl_module: LightningModule) -> Choice:
        choices = list(_possible(trainer.strategy.root_device, pl_module, self.candidates))
        if len(choices) == 1:
            return choices[0]
        with _untouched(pl_module):
            loader: Any = trainer.train_dataloader
            batch = trainer.strategy.batch_to_device(next(iter(loader)))
            for choice in choices:
                best = min(self.seconds.values(), default=float("inf"))
                self.seconds[choice] = _time_steps(trainer, pl_module, batch, choice, give_up=HOPELESS * best)
        chosen = min(self.seconds, key=lambda choice: self.seconds[choice])
        return trainer.strategy.broadcast(chosen)

    def _sentence(self, *, was_kept: bool) -> str:
        if self.choice is None:
            return ""
        name = f"{self.choice.precision} {self.choice.memory_format}"
        if was_kept:
            return f"precision: {name} (as this run began)"
        times = ", ".join(f"{c.precision} {c.memory_format} {s * 1e3:.0f} ms" for c, s in self.seconds.items())
        return f"precision: {name}" + (f" (a step: {times})" if times else "")


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device computes in bf16 by instructions of its own instead of emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def _possible(device: torch.device, module: nn.Module, precisions: tuple[PrecisionName, ...]) -> Iterator[Choice]:
    usable: list[PrecisionName] = [name for name in precisions if name != "bf16" or bf16_is_native(device)]
    formats: tuple[FormatName, ...] = ("contiguous", "channels_last")
    spatial = any(parameter.dim() in (4, 5) for parameter in module.parameters())
    for precision in usable or ["fp32"]:
        for memory_format in formats if spatial else formats[:1]:
            yield Choice(precision, memory_format)


def _apply(trainer: Trainer, module: LightningModule, choice: Choice) -> None:
    _set_memory_format(module, choice.memory_format)
    if choice.precision == "bf16":
        trainer.strategy.precision_plugin = MixedPrecision("bf16-mixed", trainer.strategy.root_device.type)


def _set_memory_format(module: nn.Module, name: FormatName) -> None:
    for parameter in module.parameters():
        if parameter.dim() == 4:
            layout = torch.channels_last if name == "channels_last" else torch.contiguous_format
        elif parameter.dim() == 5:
            layout = torch.channels_last_3d if name == "channels_last" else torch.contiguous_format
        else:
            continue
        # `to`, not `contiguous`: weights of one input channel count as both layouts and would keep their strides.
        parameter.data = parameter.data.to(memory_format=layout)


def _time_steps(trainer: Trainer, module: LightningModule, batch: Any, choice: Choice, *, give_up: float) -> float:
    """Seconds of the fastest warm step; of the cold one when that is already beyond `give_up`."""
    _set_memory_format(module, choice.memory_format)
    device = trainer.strategy.root_device
    best = float("inf")
    for step in range(1 + TIMED_STEPS):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=choice.precision == "bf16"):
            output = module.training_step(batch, 0)
        loss = output["loss"] if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            return float("inf")
        loss.backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        module.zero_grad(set_to_none=True)
        if step == 0 and seconds > give_up:
            return seconds
        best = min(best, seconds) if step else best
    return best


@contextmanager
def _untouched(module: LightningModule) -> Iterator[None]:
    """Restore generators, buffers, gradients, parameter layout and metric states; silence `self.log`."""
    generators = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    cuda_state = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    parameters = [(parameter, parameter.data) for parameter in module.parameters()]
    module.log = _log_nothing  # type: ignore[method-assign]
    module.log_dict = _log_nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.log, module.log_dict
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, data in parameters:
            parameter.data = data
            parameter.grad = None
        for child in module.modules():
            if isinstance(child, Metric):
                child.reset()
        torch.random.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        if cuda_state is not None:
            torch.cuda.set_rng_state_all(cuda_state)


def _log_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for `self.log` while steps are timed: they are not training steps."""


def _kept_choice(record: Path, device: torch.device) -> Choice | None:
    if not record.is_file():
        return None
    kept = Choice(**json.loads(record.read_text()))
    return kept if kept.precision != "bf16" or bf16_is_native(device) else None
