"""What the benchmark of the monitor trains with: our monitor under a clock, and what people use instead of it.

The others are written from their description and take the same layers; they send nothing to any logger, so that only
what they do to the training step is compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from monitor_memory import allocated_by, held_bytes
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ics_apps.callbacks import ActivationMonitor
from ics_apps.probes import Recorder, select_layers
from ics_apps.probes.activations.taps import Tap


class Clock:
    """Seconds spent in functions, a step; a clocked function called by another one counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps: list[float] = []
        self._running = False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, clocked."""

        def clocked(*args: Any, **options: Any) -> Any:
            if self._running:
                return function(*args, **options)
            self._running = True
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start
                self._running = False

        return clocked

    def end_step(self) -> None:
        """Begin the next step."""
        self.steps.append(self.seconds)
        self.seconds = 0.0

    def end_epoch(self) -> None:
        """What was done after the last step belongs to it."""
        if self.steps:
            self.steps[-1] += self.seconds
        self.seconds = 0.0


class Watcher(Callback):
    """Anything that watches, with a clock of its own."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._handles: list[RemovableHandle] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """The step is over."""
        self.clock.end_step()

    def on_train_end(self, *_: Any) -> None:
        """Take the hooks off."""
        self.clock.end_epoch()
        for handle in self._handles:
            handle.remove()


class Timed(ActivationMonitor):
    """The monitor with a clock around each of its methods that run while training runs, and around its hooks.

    Args:
        hooks: whether the hooks are clocked; a clock costs more than a hook that returns at once.
        **options: of the monitor.
    """

    def __init__(self, hooks: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.clock = Clock()
        self._clock_hooks = hooks
        # What runs once a fit is not the cost of a step; the end of a step is clocked below.
        once = {"on_fit_start", "on_train_start", "on_exception", "on_train_end", "on_train_batch_end"}
        for name in [name for name in vars(ActivationMonitor) if name.startswith("on_") and name not in once]:
            setattr(self, name, self.clock.around(getattr(self, name)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put clocks around the hooks: whole, with what they do to hand the output over."""
        super().on_train_start(trainer, pl_module)
        if not self._clock_hooks:
            return
        for module in pl_module.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for number, hook in list(hooks.items()):
                    if isinstance(getattr(hook, "__self__", None), Tap):
                        hooks[number] = self.clock.around(hook)
        recorder: Any = self._recorder
        recorder.gradient = self.clock.around(recorder.gradient)  # called by hooks of tensors, which come and go

    def on_train_batch_end(self, *args: Any) -> None:
        """As in the monitor, timed."""
        self.clock.around(super().on_train_batch_end)(*args)
        self.clock.end_step()

    def on_train_end(self, *_: Any) -> None:
        """The epoch's end was the last step's."""
        self.clock.end_epoch()


class Weighed(ActivationMonitor):
    """The monitor on the scales: what it holds, full and between steps, and what it allocates to make a table."""

    arrays = objects = peak = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """As in the monitor, weighed."""
        take = super().on_train_batch_end
        self._weigh(pl_module)
        self.peak = max(self.peak, allocated_by(lambda: take(trainer, pl_module, *args)))
        self._weigh(pl_module)

    def _weigh(self, model: nn.Module) -> None:
        arrays, objects = held_bytes(self, model)
        if arrays + objects > self.arrays + self.objects:
            self.arrays, self.objects = arrays, objects


class NaiveHooks(Watcher):
    """Five statistics of each layer's output, each fetched on its own."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the hooks on."""
        hook = self.clock.around(self._read)
        self._handles = [layer.module.register_forward_hook(hook) for layer in select_layers(pl_module).chosen]

    @staticmethod
    def _read(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        x = output.detach()
        _ = (x.mean().item(), x.var().item(), x.min().item(), x.max().item(), (x == 0).float().mean().item())


class HostHistograms(Watcher):
    """Histograms of each layer's input and output on the host, like lightning-bolts' ModuleDataMonitor."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the hooks on."""
        hook = self.clock.around(self._read)
        self._handles = [layer.module.register_forward_hook(hook) for layer in select_layers(pl_module).chosen]

    @staticmethod
    def _read(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        for x in (inputs[0], output):
            np.histogram(x.detach().cpu().numpy(), bins=64)


class GradientHistograms(Watcher):
    """64 bins of each parameter's gradient with the checks around them, like wandb.watch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the hooks on."""
        hook = self.clock.around(self._read)
        self._handles = [parameter.register_hook(hook) for parameter in pl_module.parameters()]

    @staticmethod
    def _read(gradient: Tensor) -> None:
        flat = gradient.detach().reshape(-1)
        if not torch.isfinite(flat).all().item():
            flat = flat[torch.isfinite(flat)]
        low, high = flat.min().item(), flat.max().item()
        if math.isfinite(low) and math.isfinite(high):
            torch.histc(flat, bins=64, min=low, max=high).tolist()


def dispatch_seconds(net: nn.Module, rounds: int = 1000) -> tuple[float, float]:
    """What it costs to call our hooks when they return at once: of all watched layers, and an empty one of a tensor.

    Returns:
        Seconds for one call of each watched layer, and seconds for one gradient.
    """
    layers = select_layers(net).chosen
    for layer in layers:
        layer.module.forward = _same  # only the call is timed

    def call_all() -> None:
        for layer in layers:
            layer.module(None)

    bare = _least(call_all, rounds)
    with Recorder(layers):
        hooked = _least(call_all, rounds)
    for layer in layers:
        del layer.module.forward
    x = torch.zeros(1, requires_grad=True)

    def backward(hook: bool) -> None:
        y = x * 1
        if hook:
            y.register_hook(_nothing)
        y.backward()

    gradient = _least(lambda: backward(True), rounds) - _least(lambda: backward(False), rounds)
    return max(hooked - bare, 0.0), max(gradient, 0.0)


def _same(x: Any) -> Any:
    return x


def _nothing(gradient: Tensor) -> None: ...


def _least(call: Callable[[], Any], rounds: int) -> float:
    least = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        least = min(least, (time.perf_counter() - start) / rounds)
    return least
