"""What a new norm takes over from the old one: values, options, flags, hooks, type, mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ics_apps.norms import make_norm, norm_context
from ics_apps.norms.convert import convert_norms
from ics_apps.norms.convert.adapters import NormAct, RankAdapter


def batch_norm(**options):
    norm = nn.BatchNorm2d(4, **options)
    with torch.no_grad():
        for start, tensor in enumerate([*norm.parameters(), norm.running_mean, norm.running_var]):
            tensor.copy_(torch.arange(4) + start + 0.5)
        norm.num_batches_tracked.fill_(7)
    return norm


def converted(norm, to, **options):
    net = nn.Sequential(norm)
    convert_norms(net, to, **options)
    return net[0]


def test_affine_parameters_are_the_same_objects():
    old = batch_norm()
    new = converted(old, {"name": "group", "num_groups": 2})
    assert new.weight is old.weight
    assert new.bias is old.bias


@pytest.mark.parametrize("to", ["batch", "sync_batch", "batch_frozen", "batch_noisy", "ghost_batch", "switchable"])
def test_running_statistics_are_carried_between_batch_norms(to):
    old = batch_norm()
    state = converted(old, to).state_dict()
    kept = {name.rpartition(".")[2]: value for name, value in state.items()}
    assert torch.equal(kept["running_mean"], old.running_mean)
    assert torch.equal(kept["running_var"], old.running_var)


@pytest.mark.parametrize("to", ["batch_renorm", "power_norm"])
def test_norms_that_keep_another_function_of_the_statistics_get_that_one(to):
    old = batch_norm().eval()
    new = converted(old, to)
    if to == "batch_renorm":
        x = torch.randn(3, 4, 2, 2)
        assert torch.allclose(new(x), old(x), atol=1e-6)
    else:
        assert torch.equal(new.running_square, old.running_var + old.running_mean**2)


def test_every_domain_and_every_label_starts_with_the_old_values():
    old, x, ids = batch_norm().eval(), torch.randn(3, 4, 2, 2), torch.tensor([0, 1, 1])
    for to in ({"name": "batch_per_domain", "num_domains": 2}, {"name": "conditional_batch", "num_classes": 2}):
        new = converted(old, to)
        with norm_context(domain=ids, label=ids):
            assert torch.allclose(new(x), old(x), atol=1e-5), to


@pytest.mark.parametrize(
    ("old", "to", "wanted"),
    [
        (nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), "batch", {"eps": 1e-3, "momentum": 0.2}),
        (nn.BatchNorm2d(4, eps=1e-3), "instance", {"eps": 1e-3}),
        (nn.BatchNorm2d(4, eps=1e-3), {"name": "group", "num_groups": 2, "eps": 1e-4}, {"eps": 1e-4}),
        (nn.BatchNorm2d(4, momentum=None), "batch", {"momentum": None}),
        (nn.BatchNorm2d(4, affine=False), "batch", {"weight": None}),
        (nn.BatchNorm2d(4, track_running_stats=False), "batch", {"running_mean": None}),
        (nn.LayerNorm(4, eps=1e-12), "batch", {"eps": 1e-12}),
        (nn.InstanceNorm2d(4), "batch", {"weight": None, "eps": 1e-5}),
        (nn.BatchNorm2d(4, eps=1e-3), "global_response", {"eps": 1e-6}),
    ],
)
def test_what_the_spec_leaves_open_is_as_it_was(old, to, wanted):
    new = converted(old, to)
    assert {name: getattr(new, name) for name in wanted} == wanted


def test_options_that_only_one_layer_has_survive_its_conversion_to_itself():
    old = make_norm({"name": "batch_noisy", "n_mu": 0.25}, 4)
    assert converted(old, "batch_noisy").n_mu == 0.25
    assert converted(old, {"name": "batch_noisy", "n_mu": 0.1}).n_mu == 0.1


def test_the_start_value_0_of_a_response_norm_does_not_become_a_gain():
    new = converted(make_norm("global_response", 4), "batch", where="0")
    assert torch.equal(new.weight, torch.ones(4))


def test_flags_mode_type_and_device_are_kept():
    old = batch_norm().to(torch.float64).eval()
    old.weight.requires_grad_(False)
    new = converted(old, "switchable")
    assert (new.weight.requires_grad, new.bias.requires_grad, new.mean_logits.requires_grad) == (False, True, True)
    assert not new.training
    assert {tensor.dtype for tensor in new.state_dict().values()} == {torch.float64, torch.int64}
    with torch.device("meta"):
        empty = nn.BatchNorm2d(4)
    assert converted(empty, "switchable").mean_logits.is_meta


def test_a_frozen_norm_stays_frozen_with_all_it_has():
    assert not any(p.requires_grad for p in converted(batch_norm().requires_grad_(False), "switchable").parameters())


def test_a_norm_without_tensors_follows_the_model():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)).double()
    convert_norms(net, "dyt")
    assert net[1].alpha.dtype == torch.float64


def test_hooks_are_called_and_their_handles_still_remove_them():
    old, seen = batch_norm(), []
    handles = [
        old.register_forward_hook(lambda module, args, output: seen.append("after")),
        old.register_forward_pre_hook(lambda module, args: seen.append("before")),
    ]
    new = converted(old, {"name": "group", "num_groups": 2})
    new(torch.randn(2, 4, 3, 3))
    assert seen == ["before", "after"]
    for handle in handles:
        handle.remove()
    new(torch.randn(2, 4, 3, 3))
    assert seen == ["before", "after"]


def test_a_parametrized_norm_is_left_with_the_reason():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    net = nn.Sequential(batch_norm())
    parametrize.register_parametrization(net[0], "weight", Doubled())
    assert "parametrized" in convert_norms(net, "group").kept[0].note


def test_a_lazy_norm_is_left_with_the_reason():
    report = convert_norms(nn.Sequential(nn.LazyBatchNorm2d()), "group")
    assert "run one batch through the model first" in report.kept[0].note


def test_parameters_without_a_counterpart_are_named():
    report = convert_norms(nn.Sequential(make_norm("switchable", 4)), "batch")
    assert report.rows[0].note == "dropped: mean_logits, var_logits"


def test_wrappers_show_what_models_read_from_their_norms():
    norm = batch_norm()
    wrapped = NormAct(RankAdapter(norm, 2), [nn.ReLU()])
    assert (wrapped.weight is norm.weight, wrapped.bias is norm.bias, wrapped.eps) == (True, True, norm.eps)
    assert not hasattr(NormAct(nn.Identity(), []), "weight")


def test_wrappers_load_the_state_of_the_norm_alone():
    norm = batch_norm()
    wrapped = nn.Sequential(NormAct(RankAdapter(nn.BatchNorm2d(4), 2), [nn.PReLU()]))
    state = {f"0.{name}": value for name, value in norm.state_dict().items()}
    wrapped.load_state_dict({**state, "0.after.0.weight": torch.ones(1)})
    assert torch.equal(wrapped[0].norm.norm.running_mean, norm.running_mean)
    wrapped.load_state_dict(wrapped.state_dict())
