"""Models that keep state wherever a model can, each with a loss and optimizers; and what a probe must not change."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryPrecision, BinaryRecall

from ics_apps.nets import UNet


@dataclass(frozen=True)
class Subject:
    """A model in training, after one optimizer step, so that gradients and optimizer states are there.

    Attributes:
        model: the model.
        batch: what it is called with.
        loss: the loss of this batch.
        optimizers: those of the model.
    """

    model: nn.Module
    batch: Tensor
    loss: Callable[[], Tensor]
    optimizers: list[torch.optim.Optimizer]

    def step(self) -> None:
        """One training step."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.loss().backward()
        for optimizer in self.optimizers:
            optimizer.step()


class Tied(nn.Module):
    """A transformer whose embedding is also its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.body = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.out = nn.Linear(16, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.out(self.body(self.embedding(tokens)))
        return y


class Measuring(nn.Module):
    """Metrics that its loss updates: with states that are tensors, lists, and shared in a compute group."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        self.mean = MeanMetric()
        self.metrics = MetricCollection([BinaryAccuracy(), BinaryPrecision(), BinaryRecall()])
        self.listed = BinaryAccuracy(multidim_average="samplewise")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y

    def loss(self, x: Tensor) -> Tensor:
        y, target = self(x), (x[:, :1] > 0).long()
        loss = F.binary_cross_entropy_with_logits(y, target.float())
        self.mean(loss.detach())
        self.metrics(y.detach(), target)
        self.listed.update(y.detach(), target)
        return loss


class Adversarial(nn.Module):
    """A discriminator under spectral norm that sees real and generated samples in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Tanh())
        self.d = nn.Sequential(spectral_norm(nn.Linear(12, 8)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(8, 1)))

    def forward(self, real: Tensor) -> Tensor:
        y: Tensor = self.d(torch.cat([real, self.g(torch.randn(len(real), 4))]))
        return torch.cat(y.chunk(2), 1)


class Recurrent(nn.Module):
    """It carries its state from batch to batch, counts its calls and draws from generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 7, batch_first=True)
        self.head = nn.Linear(7, 2)
        self.state: Tensor | None = None
        self.calls = 0
        self.history: list[float] = []
        self.noise = torch.Generator().manual_seed(3)
        self.draws = np.random.default_rng(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x + 0.1 * torch.randn(x.shape, generator=self.noise) + 0.1 * self.draws.normal() + random.gauss(0, 0.1)
        y, state = self.rnn(x, self.state)
        self.state = state.detach()
        self.history.append(float(self.state.mean()) + np.random.rand())
        out: Tensor = self.head(y)
        return out


def classifier() -> Subject:
    """Convolution, batch norm, in-place ReLU, dropout."""
    conv = nn.Conv2d(2, 6, 3, padding=1)
    body = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(6 * 36, 3))
    x, target = torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0])
    return _trained(model, x, lambda: F.cross_entropy(model(x), target), torch.optim.AdamW(model.parameters(), 1e-2))


def transformer() -> Subject:
    """Tied weights, attention, dropout."""
    model, tokens = Tied(), torch.randint(11, (3, 5))

    def loss() -> Tensor:
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return _trained(model, tokens[:, :-1], loss, torch.optim.Adam(model.parameters(), 1e-2, amsgrad=True))


def gan() -> Subject:
    """Spectral norm, whose power iteration moves buffers; random numbers in the forward; two optimizers."""
    model, real = Adversarial(), torch.randn(6, 12)

    def loss() -> Tensor:
        on_real, on_fake = model(real).unbind(1)
        return F.softplus(-on_real).mean() + F.softplus(on_fake).mean()

    optimizers = [torch.optim.RMSprop(net.parameters(), 1e-2, momentum=0.5) for net in (model.g, model.d)]
    return _trained(model, real, loss, *optimizers)


def autocast() -> Subject:
    """Mixed precision, bfloat16."""
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    x = torch.randn(5, 6)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().square().mean()

    return _trained(model, x, loss, torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9))


def frozen() -> Subject:
    """A frozen backbone in evaluation mode, with a batch norm, below a head."""
    backbone = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()).eval().requires_grad_(False)
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6, 2))
    model, x = nn.Sequential(backbone, head), torch.randn(4, 3, 8)
    return _trained(model, x, lambda: model(x).square().mean(), torch.optim.SGD(head.parameters(), 1e-2, momentum=0.9))


def measuring() -> Subject:
    """Metrics of torchmetrics that are updated in the loss."""
    model, x = Measuring(), torch.randn(8, 6)
    return _trained(model, x, lambda: model.loss(x), torch.optim.Adagrad(model.parameters(), 1e-2))


def recurrent() -> Subject:
    """State in plain attributes and generators."""
    model, x = Recurrent(), torch.randn(3, 4, 5)
    return _trained(model, x, lambda: model(x).square().mean(), torch.optim.NAdam(model.parameters(), 1e-2))


def unet() -> Subject:
    """Our U-Net with batch norm."""
    model, x, target = UNet(1, 2, norm="batch", width=4, depth=2), torch.randn(2, 1, 8, 8), torch.ones(2, 8, 8).long()
    return _trained(model, x, lambda: F.cross_entropy(model(x), target), torch.optim.AdamW(model.parameters(), 1e-2))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "classifier": classifier,
    "transformer": transformer,
    "gan": gan,
    "autocast": autocast,
    "frozen": frozen,
    "measuring": measuring,
    "recurrent": recurrent,
    "unet": unet,
}


def fingerprint(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = ()) -> dict[str, Any]:
    """All that has to stay as it is, to the bit: compare two of them with `==`; a difference has a name.

    Also the identity of what others may hold: parameters, gradients, buffers.
    """
    parts: dict[str, Any] = {"torch": _bits(torch.get_rng_state()), "numpy": _bits(np.random.get_state())}
    parts["python"] = random.getstate()
    parts["modules"] = [(name, id(module), module.training) for name, module in model.named_modules()]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        of = (id(parameter), parameter.requires_grad, _bits(parameter), id(parameter.grad), _bits(parameter.grad))
        parts[f"parameter {name}"] = of
    for name, buffer in model.named_buffers(remove_duplicate=False):
        parts[f"buffer {name}"] = (id(buffer), _bits(buffer))
    hidden = {"_parameters", "_buffers", "_modules"}
    for name, module in model.named_modules():
        parts[f"attributes {name}"] = {k: _bits(v) for k, v in vars(module).items() if k not in hidden}
    for number, optimizer in enumerate(optimizers):
        parts[f"optimizer {number}"] = _bits(optimizer.state_dict())
    return parts


def _bits(value: Any) -> Any:
    """Something that compares equal if and only if all bits are; an object of unknown kind is its identity."""
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), dense.view(torch.uint8).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, torch.Generator):
        return _bits(value.get_state())
    if isinstance(value, np.random.Generator):
        return _bits(value.bit_generator.state)
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_bits(item) for item in value]
    return value if isinstance(value, int | float | str | bytes | None) else id(value)


def _trained(
    model: nn.Module, batch: Tensor, loss: Callable[[], Tensor], *optimizers: torch.optim.Optimizer
) -> Subject:
    subject = Subject(model, batch, loss, list(optimizers))
    subject.step()
    return subject
