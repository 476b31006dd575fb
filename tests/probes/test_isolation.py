"""Where samples are looked for inside a model, and in what it is given and gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ics_apps.probes.leakage import gradient_leakage
from ics_apps.probes.preserve import ProbeError


def sources(model: nn.Module, *args: Any, **options: Any) -> list[str]:
    return [module.module for module in gradient_leakage(model, args, **options).sources]


def images(batch: int = 8) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*self.parts, *args, **kwargs)


class Tokens(nn.Module):
    """A language model: token and position embeddings, tied head."""

    def __init__(self, mixing: bool, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 8), nn.Embedding(length, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=not mixing)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        logits: Tensor = self.head(self.norm(self.block(x)))
        return logits


# As many positions as samples: the table of positions looks like samples by its size.
@pytest.mark.parametrize("length", [4, 5])
def test_tokens_are_followed_from_their_embeddings(length: int) -> None:
    ids = torch.randint(20, (4, length))
    assert gradient_leakage(Tokens(False, length), [ids]).ratio == 0.0
    found = gradient_leakage(Tokens(True, length), [ids])
    assert found.ratio > 0
    assert [module.module.split(".")[0] for module in found.sources] == ["block"]


def test_a_table_of_pairs_of_positions_is_not_taken_for_samples() -> None:
    def attend(tokens: nn.Module, distances: nn.Module, ids: Tensor) -> Tensor:
        x, places = tokens(ids), torch.arange(ids.shape[1])
        bias = distances((places[None] - places[:, None]).abs()).squeeze(2)
        return (x @ x.mT + bias).softmax(2) @ x

    model = Apply(attend, nn.Embedding(20, 8), nn.Embedding(6, 1))
    assert gradient_leakage(model, [torch.randint(20, (6, 6))]).ratio == 0.0


def test_labels_are_followed_where_they_are_the_only_integers() -> None:
    def conditional(table: nn.Module, norm: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
        return z * norm(table(labels))

    model = Apply(conditional, nn.Embedding(3, 4), nn.BatchNorm1d(4))
    assert sources(model, torch.randn(6, 4), torch.randint(3, (6,))) == ["parts.1"]


def test_a_batch_axis_that_is_not_the_first_is_declared() -> None:
    recurrent = nn.GRU(3, 4)
    x = torch.randn(5, 6, 3)
    model = Apply(lambda rnn, x: rnn(x)[0], recurrent)
    assert gradient_leakage(model, [x], batch_axis=1).ratio == 0.0
    # Taken for samples, time steps do see each other.
    assert gradient_leakage(model, [x], batch_axis=0).ratio > 0


@pytest.mark.parametrize("steps", [4, 6])
def test_inside_the_model_samples_are_found_by_their_number(steps: int) -> None:
    def turned(rnn: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
        y, _ = rnn(x.transpose(0, 1))
        return head(y.transpose(0, 1))

    assert gradient_leakage(Apply(turned, nn.LSTM(3, 4), nn.Linear(4, 1)), [torch.randn(6, steps, 3)]).ratio == 0.0
    leaking = Apply(turned, nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1))
    assert [source[:7] for source in sources(leaking, torch.randn(6, steps, 3))] == ["parts.0"]


def test_several_rows_a_sample_are_laid_to_the_module_around() -> None:
    def by_frame(norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    # B = C = 4: channels are no samples.
    for norm, expected in ((nn.BatchNorm1d(4), ["0"]), (nn.LayerNorm(4), [])):
        assert sources(nn.Sequential(Apply(by_frame, norm)), torch.randn(4, 5, 4)) == expected


def test_inputs_come_nested_with_masks_numbers_and_constants() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, batch: dict[str, Any], pair: tuple[Tensor, Tensor], scale: float, *, grid: Tensor) -> Any:
            assert isinstance(batch["name"], str)
            y = self.norm(self.conv(batch["image"])) * scale + pair[0][:, :, None, None] * grid.mean()
            return {"y": y * batch["mask"], "loss": y.mean(), "more": [(y, None)]}

    x = {"image": images(), "mask": torch.ones(8, 1, 1, 1, dtype=torch.bool), "name": "a"}
    args = [x, (torch.randn(8, 3), torch.zeros(8, dtype=torch.int64)), 2.0]
    found = gradient_leakage(Nested(), args, {"grid": torch.randn(5, 2)})
    assert [module.module for module in found.sources] == ["norm"]
    assert found.batch == 8


def test_a_batch_of_one_and_a_loss_over_the_batch_are_refused() -> None:
    with pytest.raises(ProbeError, match="A batch of 1 has no other samples"):
        gradient_leakage(nn.Linear(3, 1), [torch.randn(1, 3)])
    with pytest.raises(ProbeError, match=r"The outputs \(\(\)\) have no axis of the batch's 8 samples"):
        gradient_leakage(Apply(lambda x: x.mean()), [images()])
    with pytest.raises(ProbeError, match="No input tensor has an axis 2"):
        gradient_leakage(nn.Linear(3, 1), [torch.randn(4, 3)], batch_axis=2)
    with pytest.raises(ProbeError, match="use perturbation_leakage"):
        gradient_leakage(Apply(lambda x: x.argmax(1)), [images()])
    with pytest.raises(ProbeError, match="is not finite"):
        gradient_leakage(nn.Sequential(Apply(lambda x: x.log())), [torch.zeros(4, 3)])


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_axis is -1"):
        gradient_leakage(nn.Linear(3, 1), [torch.randn(4, 3)], batch_axis=-1)
    with pytest.raises(ValueError, match="sample is 4; the batch of 4 allows 0 to 3"):
        gradient_leakage(nn.Linear(3, 1), [torch.randn(4, 3)], sample=4)
