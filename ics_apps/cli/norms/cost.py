"""What a norm costs beside torch's batch norm, measured in turns on this machine. Torch is imported inside functions.

Shared by `ics-apps norms describe` and `benchmarks/norms.py`. Nothing is written; `remembered` keeps results.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ics_apps.norms import NormEntry, NormError, make_norm
from ics_apps.norms.registry import Dim

if TYPE_CHECKING:
    from torch import Tensor, nn

SHAPE: Final = (32, 64, 56, 56)
"""The input (B, C, H, W) of every figure: the first stage of a ResNet-50 on 224 pixels."""
REPEATS: Final = 10


@dataclass(frozen=True)
class Arm:
    """Something to time: a function of one input, the tensors to differentiate by, and the context it runs in."""

    forward: Callable[[Tensor], Tensor]
    x: Tensor
    parameters: tuple[Tensor, ...] = ()
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Timing:
    """Least seconds over the turns of one arm. `both` is the least sum, so it may exceed the sum of the leasts."""

    forward: float
    backward: float
    both: float


@dataclass(frozen=True)
class Cost:
    """The cost of a norm against batch norm, and what it was measured on; seconds are the least of `repeats`."""

    norm: str
    forward: float
    backward: float
    both: float
    batch_forward: float
    batch_backward: float
    batch_both: float
    against: str
    shape: tuple[int, ...]
    threads: int
    device: str
    torch: str
    repeats: int
    day: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return asdict(self)

    def as_text(self) -> str:
        """Two lines: the ratio with its two times and its conditions, then the parts and the machine."""
        shape = ", ".join(map(str, self.shape))
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return (
            f"forward+backward {self.both / self.batch_both:.2f}x {self.against} ({self.both * 1e3:.3g} ms against "
            f"{self.batch_both * 1e3:.3g} ms; ({shape}) float32, {threads}, minimum of {self.repeats})\n"
            f"forward {self.forward / self.batch_forward:.2f}x, backward {self.backward / self.batch_backward:.2f}x; "
            f"{self.device}, torch {self.torch}, {self.day}"
        )


def measure_cost(
    entry: NormEntry, *, shape: tuple[int, int, int, int] = SHAPE, repeats: int = REPEATS, device: str = "cpu"
) -> Cost:
    """Time a norm and torch's batch norm in turns, forward and backward, contiguous float32.

    A norm that is not defined on images is measured on tokens (or what it has), with the same number of values, against
    batch norm there. A norm on weights is measured in a 1x1 convolution, against that convolution with batch norm.

    Raises:
        NormError: The device is not there.
    """
    import torch

    _check_device(device)
    norm = norm_arm(entry, shape, device=device)
    batch = batch_norm_arm(entry, shape, device=device)
    timing, baseline = time_in_turns([norm, batch], repeats)
    return Cost(
        norm=entry.name,
        forward=timing.forward, backward=timing.backward, both=timing.both,
        batch_forward=baseline.forward, batch_backward=baseline.backward, batch_both=baseline.both,
        against="a 1x1 convolution with batch norm" if entry.acts_on_weight else "batch norm",
        shape=tuple(norm.x.shape),
        threads=torch.get_num_threads(),
        device=processor_name() if device == "cpu" else _accelerator_name(device),
        torch=torch.__version__,
        repeats=repeats,
        day=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip


def time_in_turns(arms: Sequence[Arm], repeats: int) -> list[Timing]:
    """Time arms one after the other, `repeats` times around, so that a busy machine slows all of them alike.

    One more round before warms up and is not counted. A turn is one forward pass, then the gradient of a fixed random
    projection of its output by the input and the parameters.
    """
    if repeats < 1:
        raise NormError(f"repeats must be at least 1, got {repeats}")
    clocks = [_Clock(arm) for arm in arms]
    for clock in clocks:
        clock.turn()
        clock.turns.clear()
    for number in range(repeats):
        first = number % len(clocks)
        for clock in clocks[first:] + clocks[:first]:
            clock.turn()
    return [clock.least() for clock in clocks]


def norm_arm(
    entry: NormEntry, shape: tuple[int, int, int, int], *, channels_last: bool = False, device: str = "cpu"
) -> Arm:
    """A registered norm with its default options, in training mode, with made-up conditions if it needs any."""
    channels, dim = shape[1], measured_dim(entry)
    x = made_input(dim, shape, channels_last=channels_last, device=device)
    norm = make_norm(entry.name, channels, dim).to(device)
    layer = _weighted(norm, channels, device) if entry.acts_on_weight else norm
    context = _conditions(x) if entry.needs_condition else nullcontext
    return module_arm(layer, x, context)


def batch_norm_arm(
    entry: NormEntry, shape: tuple[int, int, int, int], *, channels_last: bool = False, device: str = "cpu"
) -> Arm:
    """What an entry is compared with: torch's batch norm on an input of the same kind and size."""
    from torch import nn

    channels, dim = shape[1], measured_dim(entry)
    x = made_input(dim, shape, channels_last=channels_last, device=device)
    if entry.acts_on_weight:
        return module_arm(
            nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)).to(device), x
        )
    norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d, "tokens": nn.BatchNorm1d}[dim](
        channels
    ).to(device)
    if dim != "tokens":
        return module_arm(norm, x)
    return Arm(lambda tokens: norm(tokens.flatten(0, 1)).view_as(tokens), x, tuple(norm.parameters()))


def module_arm(module: nn.Module, x: Tensor, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Arm:
    """A module in training mode as an arm."""
    module.train()
    return Arm(module, x, tuple(p for p in module.parameters() if p.requires_grad), context)


def measured_dim(entry: NormEntry) -> Dim:
    """The kind of input a norm is measured on: images if it can, else tokens, else the first that it has."""
    if entry.acts_on_weight:
        return 2
    return next(dim for dim in (2, "tokens", *entry.dims) if dim in entry.dims)


def made_input(
    dim: Dim, shape: tuple[int, int, int, int], *, channels_last: bool = False, device: str = "cpu"
) -> Tensor:
    """Random values for one kind of input, as many as an image batch `shape` holds, and a gradient wanted.

    Example:
        >>> tuple(made_input("tokens", (2, 4, 3, 5)).shape), tuple(made_input(0, (2, 4, 3, 5)).shape)
        ((2, 15, 4), (30, 4))
    """
    import torch

    batch, channels, height, width = shape
    sizes: dict[Dim, tuple[int, ...]] = {
        0: (batch * height * width, channels),
        1: (batch, channels, height * width),
        2: shape,
        3: (batch, channels, 1, height, width),
        "tokens": (batch, height * width, channels),
    }
    x = torch.randn(sizes[dim], generator=torch.Generator().manual_seed(0)).to(device)
    if channels_last and dim == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def processor_name() -> str:
    """The processor as its maker calls it, on Linux; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class _Clock:
    """One arm and its upstream gradient, made once in the layout of the output, as the layer behind would send it."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.upstream: Tensor | None = None
        self.turns: list[tuple[float, float]] = []

    def turn(self) -> None:
        """Time one forward and one backward pass."""
        import torch

        with self.arm.context():
            start = _now(self.arm.x)
            y = self.arm.forward(self.arm.x)
            forward = _now(self.arm.x) - start
        if self.upstream is None:
            self.upstream = torch.randn_like(y)
        start = _now(self.arm.x)
        torch.autograd.grad(y, (self.arm.x, *self.arm.parameters), self.upstream, allow_unused=True)
        self.turns.append((forward, _now(self.arm.x) - start))

    def least(self) -> Timing:
        """The least seconds of all turns."""
        forward, backward = zip(*self.turns, strict=True)
        return Timing(min(forward), min(backward), min(map(sum, self.turns)))


def _now(x: Tensor) -> float:
    import torch

    if x.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _check_device(device: str) -> None:
    import torch

    here = torch.accelerator.current_accelerator()
    allowed = ["cpu", *([here.type] if here is not None and torch.accelerator.is_available() else [])]
    if device not in allowed:
        raise NormError(f"device {device!r} is not on this machine; it has: {', '.join(allowed)}")


def _accelerator_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device


def _weighted(norm: nn.Module, channels: int, device: str) -> nn.Module:
    """A 1x1 convolution that carries a norm on weights."""
    from torch import nn

    from ics_apps.norms.layers.weight import attach_weight_norm

    convolution = nn.Conv2d(channels, channels, 1, bias=False, device=device)
    attach_weight_norm(convolution, norm)
    return nn.Sequential(convolution, norm)


def _conditions(x: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """A context with every kind of condition: two domains and labels, a style map, half the batch as the reference."""
    import torch

    from ics_apps.norms.condition import norm_context

    two = torch.arange(len(x), device=x.device) % 2
    style = torch.randn_like(x, requires_grad=False)
    return lambda: norm_context(domain=two, label=two, style=style, reference=max(1, len(x) // 2))
