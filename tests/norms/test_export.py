"""Norms outside of eager Python: compiled, exported, and run by ONNX Runtime."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from ics_apps.norms import norm_entry
from tests.norms.conftest import ON_ACTIVATIONS


def in_evaluation(norm, layer, values):
    """A float32 layer in evaluation and an input, for images where it is defined for them."""
    entry = norm_entry(norm)
    dim = 2 if 2 in entry.dims else entry.dims[-1]
    return layer(norm, dim).float().eval(), values(dim).float()


def test_an_exported_program_gives_the_same_values(norm, layer, values):
    module, x = in_evaluation(norm, layer, values)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_gives_the_same_values(norm, layer, values):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `dev`")
    module, x = in_evaluation(norm, layer, values)
    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), module(x), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_default_compiler_gives_the_same_values_and_gradients(norm, layer, values):
    entry = norm_entry(norm)
    dim = 2 if 2 in entry.dims else entry.dims[-1]
    module, x = layer(norm, dim), values(dim)
    if norm == "batch_noisy":
        module.eval()  # its noise comes from another generator when compiled
    # From one state: a call in training moves running statistics.
    eager, compiled = copy.deepcopy(module), torch.compile(copy.deepcopy(module), fullgraph=True)
    results = []
    for candidate in (eager, compiled):
        leaf = x.clone().requires_grad_()
        y = candidate(leaf)
        (y * y.detach().cos()).sum().backward()
        results.append((y, leaf.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_every_entry_on_activations_is_exported():
    assert len(ON_ACTIVATIONS) >= 35
