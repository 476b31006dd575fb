"""How a condition reaches a norm: contexts inside contexts, calls, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ics_apps.norms import NormError, make_norm, norm_context
from ics_apps.norms.condition import check_ids, condition, optional_condition


def test_an_inner_context_adds_to_the_outer_one_and_hides_what_it_repeats():
    with norm_context(domain=1, label=2):
        with norm_context(domain=3, style=4):
            assert [condition(kind) for kind in ("domain", "label", "style")] == [3, 2, 4]
        assert condition("domain") == 1
        assert optional_condition("style") is None
    assert optional_condition("domain") is None


def test_an_exception_inside_leaves_the_context_as_it_was_before():
    with norm_context(domain=1):
        with pytest.raises(RuntimeError, match="inside"), norm_context(domain=2, label=3):
            raise RuntimeError("inside")
        assert condition("domain") == 1
        assert optional_condition("label") is None
    assert optional_condition("domain") is None


def test_what_the_call_gives_goes_before_the_context():
    with norm_context(label=1):
        assert condition("label", 2) == 2


def test_an_unknown_kind_names_the_nearest_and_changes_nothing():
    message = "unknown condition 'labels'; did you mean 'label'. Known: domain, label, style, reference"
    with pytest.raises(NormError, match=message), norm_context(domain=1, labels=2):
        pass
    assert optional_condition("domain") is None


def test_a_missing_condition_is_refused_with_both_ways_to_give_it():
    with pytest.raises(NormError, match=r"call it as norm\(x, label\) or .* `with norm_context\(label=\.\.\.\)`"):
        condition("label")


def test_a_context_reaches_every_norm_of_a_net():
    net = nn.Sequential(make_norm("batch_per_domain", 4), nn.Sequential(nn.ReLU(), make_norm("conditional_batch", 4)))
    with norm_context(domain=torch.tensor([0, 1]), label=torch.tensor([3, 4])):
        assert net(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_ids_of_any_integer_type_are_taken(dtype):
    ids = check_ids("label", torch.tensor([0, 2], dtype=dtype), 2, 3, "num_classes")
    assert ids.dtype == torch.int64
    assert ids.tolist() == [0, 2]
