"""Switchable norm at the corners of its mix."""

from __future__ import annotations

import pytest
import torch

from ics_apps.norms import make_norm


@pytest.mark.parametrize(("chosen", "alone"), [(0, "instance"), (1, "layer_chw"), (2, "batch")])
def test_with_all_weight_on_one_kind_it_is_that_norm(chosen, alone):
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    norm, reference = make_norm("switchable", 4).double(), make_norm(alone, 4).double()
    with torch.no_grad():
        norm.mean_logits[chosen] = 100
        norm.var_logits[chosen] = 100
    torch.testing.assert_close(norm(x), reference(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.eval()(x), reference.eval()(x), rtol=0, atol=1e-12)


def test_it_starts_with_equal_weights_of_three_kinds_and_of_two_on_features():
    assert make_norm("switchable", 4, 2).mean_logits.softmax(0).tolist() == pytest.approx([1 / 3] * 3)
    assert make_norm("switchable", 4, 0).mean_logits.softmax(0).tolist() == pytest.approx([1 / 2] * 2)


def test_a_refused_batch_leaves_the_running_statistics_alone():
    norm = make_norm("switchable", 4, 0)
    with pytest.raises(
        ValueError, match=r"expected more than 1 value per channel when training, got input size \(1, 4\)"
    ):
        norm(torch.randn(1, 4))
    assert torch.equal(norm.running_var, torch.ones(4))
