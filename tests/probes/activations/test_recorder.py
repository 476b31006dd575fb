"""The table of one sampled step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ics_apps.norms import NormalizedConcat, make_norm
from ics_apps.probes.activations.columns import COLUMNS, Table
from ics_apps.probes.activations.recorder import MAX_CALLS, Recorder
from ics_apps.probes.selection import select_layers


def watch(model: nn.Module, *inputs: Any, layers: Any = None, turns: int = 1, size: int = 4096) -> Table:
    """Run the model once per turn and return the last table."""
    recorder = Recorder(select_layers(model, layers).chosen, size)
    table: Table = {}
    with recorder:
        for turn in range(turns):
            recorder.start(turn)
            for x in inputs:
                model(x)
            table = recorder.close()
    return table


def test_the_table_has_one_row_a_layer_in_forward_order_and_the_promised_types() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    table = watch(model, torch.randn(2, 1, 8, 8))
    assert list(table) == list(COLUMNS)
    assert {name: str(values.dtype) for name, values in table.items()} == COLUMNS
    assert table["layer"].tolist() == ["0", "1", "2"]
    assert table["order"].tolist() == [0, 1, 2]
    assert table["type"].tolist() == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert table["channels"].tolist() == [4, 4, 4]


def test_the_figures_of_a_known_output() -> None:
    table = watch(nn.Sequential(nn.ReLU()), torch.tensor([[-1.0, 0.0, 1.0, 4.0]]))
    row = {name: values[0] for name, values in table.items()}
    assert (row["mean"], row["min"], row["max"], row["q50"]) == (1.25, 0.0, 4.0, 0.5)
    assert (row["zero_fraction"], row["count"], row["nonfinite_count"]) == (0.5, 4, 0)
    assert math.isnan(row["saturated_fraction"])
    assert math.isnan(row["running_gap"])


def test_an_in_place_activation_does_not_change_what_was_read_before_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    norm = nn.BatchNorm2d(1)
    plain = watch(nn.Sequential(norm, nn.ReLU()), x.clone())
    in_place = watch(nn.Sequential(norm, nn.ReLU(inplace=True)), x.clone())
    assert plain["min"].tolist() == in_place["min"].tolist()
    assert plain["min"][0] < 0 == plain["min"][1]


@pytest.mark.parametrize("inplace", [False, True])
def test_saturation_of_silu_is_judged_on_its_input(inplace: bool) -> None:
    x = torch.tensor([[-10.0, -5.0, -0.01, 0.01, 10.0]])
    table = watch(nn.Sequential(nn.SiLU(inplace=inplace)), x)
    assert table["saturated_fraction"].tolist() == pytest.approx([0.4])


def test_saturation_of_sigmoid_is_judged_on_its_output() -> None:
    table = watch(nn.Sequential(nn.Sigmoid()), torch.tensor([[-10.0, 0.0, 1.0, 10.0]]))
    assert table["saturated_fraction"].tolist() == [0.5]


def test_a_dead_channel_is_counted() -> None:
    x = torch.ones(4, 3, 8, 8)
    x[:, 2] = -1
    assert watch(nn.Sequential(nn.ReLU()), x)["dead_channels"].tolist() == [1]


def test_a_wide_layer_needs_several_samples_before_a_channel_counts_as_dead() -> None:
    x = torch.ones(64, 1024)
    x[:, 7] = -1
    model = nn.Sequential(nn.ReLU())
    assert watch(model, x, turns=5)["dead_channels"].tolist() == [0]
    assert watch(model, x, turns=60)["dead_channels"].tolist() == [1]


def test_dead_channels_are_not_given_where_zeros_mean_nothing() -> None:
    assert watch(nn.Sequential(nn.Conv2d(1, 2, 1)), torch.zeros(1, 1, 4, 4))["dead_channels"].tolist() == [-1]


def test_the_running_gap_is_exact() -> None:
    norm = nn.BatchNorm2d(3, eps=1e-12)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    assert watch(nn.Sequential(norm), torch.full((4, 3, 2, 2), 6.0))["running_gap"].tolist() == pytest.approx(
        [2.5], rel=1e-5
    )


def test_the_running_gap_with_cumulative_averages() -> None:
    norm = nn.BatchNorm1d(1, momentum=None)
    table = watch(nn.Sequential(norm), torch.tensor([[1.0], [3.0]]), turns=3)
    # The running mean is 2 from the first batch on, so the third batch has no gap.
    assert table["running_gap"].tolist() == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2).eval(), nn.GroupNorm(1, 2), make_norm("batch_frozen", 2)])
def test_a_norm_that_does_not_update_has_no_running_gap(norm: nn.Module) -> None:
    assert np.isnan(watch(nn.Sequential(norm), torch.randn(4, 2, 3, 3))["running_gap"]).all()


def test_our_own_norms_with_running_statistics_have_a_running_gap() -> None:
    norm = make_norm("switchable", 2)
    assert np.isfinite(watch(nn.Sequential(norm), torch.randn(4, 2, 3, 3))["running_gap"]).all()


def test_several_forwards_are_kept_apart_and_compared_with_their_own_past() -> None:
    real, fake = torch.randn(64, 4), 50 + torch.randn(64, 4)
    table = watch(nn.Sequential(nn.LeakyReLU()), real, fake, turns=2)
    assert table["call"].tolist() == [0, 1]
    assert table["mean"][1] > 40 > table["mean"][0]
    assert table["drift_w1"].max() < 0.5


def test_calls_beyond_the_limit_are_not_read() -> None:
    table = watch(nn.Sequential(nn.ReLU()), *[torch.ones(1, 1)] * (MAX_CALLS + 3))
    assert table["call"].tolist() == list(range(MAX_CALLS))


def test_more_rows_than_a_block_holds() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(40)])
    x = torch.randn(32, 8)
    table = watch(model, x)
    expected = []
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            expected.append(float(x.mean()))
    assert table["mean"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_is_read_as_float32(dtype: torch.dtype) -> None:
    table = watch(nn.Sequential(nn.ReLU()), torch.full((2, 2), 300.0, dtype=dtype))
    assert (table["mean"].tolist(), table["std"].tolist()) == ([300.0], [0.0])


def test_streams_of_a_concatenation_are_read_at_their_outputs() -> None:
    class Join(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.concat = NormalizedConcat({"skip": 2, "up": 2})

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.concat(skip=x, up=5 * x)
            return y

    table = watch(Join(), torch.ones(1, 2, 3, 3))
    assert dict(zip(table["layer"], table["rms"], strict=True)) == {"concat.skip": 1.0, "concat.up": 5.0}
    assert set(table["kind"]) == {"stream"}


def test_recurrent_layers_can_be_watched_by_name() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(3, 5)})
    recorder = Recorder(select_layers(model, "rnn").chosen)
    with recorder:
        recorder.start(0)
        model["rnn"](torch.randn(7, 2, 3))
        table = recorder.close()
    assert (table["type"].tolist(), table["count"].tolist()) == (["LSTM"], [70])


def test_a_forward_under_inference_mode_does_not_spoil_later_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    recorder = Recorder(select_layers(model).chosen)
    with recorder:
        for turn in range(2):
            recorder.start(turn)
            with torch.inference_mode(turn == 0):
                model(torch.ones(2, 4))
            assert len(recorder.close()["layer"]) == 2


def test_nothing_is_read_outside_start_and_close_and_no_hook_stays() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.SiLU())
    recorder = Recorder(select_layers(model).chosen)
    with recorder:
        model(torch.randn(4, 2))
        recorder.start(0)
        assert len(recorder.close()["layer"]) == 0
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_cannot_be_read_is_left_out_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("strange tensor")

    monkeypatch.setattr("ics_apps.probes.activations.plans.read", broken)
    model = nn.Sequential(nn.ReLU())
    with pytest.warns(UserWarning, match="cannot read '0' and leaves it out: strange tensor") as caught:
        table = watch(model, torch.ones(1, 1), torch.ones(1, 1), turns=2)
    assert len(caught) == 1
    assert len(table["layer"]) == 0


def test_too_small_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="sample_size is 10; give 64 to 65535"):
        Recorder([], sample_size=10)


def test_the_state_survives_a_weights_only_file(tmp_path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(16, 4)
    first = Recorder(select_layers(model).chosen)
    with first:
        first.start(0)
        model(x)
        first.close()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Recorder(select_layers(model).chosen)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with second:
        second.start(1)
        model(x)
        assert second.close()["drift_w1"].tolist() == [0.0, 0.0]


def test_gradients_of_a_gradient_penalty_are_read_at_the_last_backward_pass() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(8, 4, requires_grad=True)
    kept: list[Tensor] = []

    def keep_gradient(_module: nn.Module, _args: tuple[Any, ...], y: Tensor) -> None:
        y.register_hook(kept.append)

    recorder = Recorder(select_layers(model).chosen)
    with recorder:
        recorder.start(0)
        hook = model[1].register_forward_hook(keep_gradient)
        # The first pass gives gradients that require gradients themselves.
        (penalty,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        penalty.square().sum().backward()
        table = recorder.close()
        hook.remove()
    assert len(kept) == 2
    assert table["grad_rms"][1] == pytest.approx(float(kept[-1].detach().square().mean().sqrt()), rel=1e-6)


def test_an_activation_whose_output_changes_its_form_keeps_its_channel_axis() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
    recorder = Recorder(select_layers(model).chosen)
    x = torch.randn(4, 5, 3)
    with recorder:
        for turn in range(2):
            recorder.start(turn)
            model[1](model[0](x) if turn == 0 else model[0](x)[::2])
            table = recorder.close()
            assert table["channels"].tolist() == [8, 8]
