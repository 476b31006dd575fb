"""Weights as others save them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from ics_apps.runs.checkpoints import CheckpointError
from ics_apps.runs.weight_files import read_weights

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.zeros(2)}


def saved(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def same(tensors: dict[str, torch.Tensor]) -> bool:
    return list(tensors) == list(STATE) and all(torch.equal(tensors[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("key", ["state_dict", "network_weights", "model_state_dict", "model", "net"])
def test_a_state_dict_is_found_inside_what_training_scripts_save(tmp_path, key):
    assert same(read_weights(saved(tmp_path / "a.pt", {"epoch": 3, key: STATE})).tensors)


def test_a_bare_state_dict_is_read(tmp_path):
    weights = read_weights(saved(tmp_path / "a.pth", STATE))
    assert same(weights.tensors)
    assert weights.origin == str(tmp_path / "a.pth")


def test_a_layer_called_model_is_no_dict_of_weights(tmp_path):
    weights = read_weights(saved(tmp_path / "a.pth", {"model": torch.zeros(1), **STATE}))
    assert list(weights.tensors) == ["model", *STATE]


def test_safetensors_are_read(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    files.save_file(STATE, tmp_path / "a.safetensors")
    assert set(read_weights(tmp_path / "a.safetensors").tensors) == set(STATE)
    (tmp_path / "b.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError, match=r"b\.safetensors could not be read"):
        read_weights(tmp_path / "b.safetensors")


def test_a_monai_bundle_stands_for_its_model_and_tells_its_classes(tmp_path):
    saved(tmp_path / "models/model.pt", {"model": STATE})
    (tmp_path / "configs").mkdir()
    outputs = {"pred": {"type": "image", "channel_def": {"0": "background", "1": "spleen"}}}
    about = {"name": "Spleen CT", "version": "0.5.3", "network_data_format": {"outputs": outputs}}
    (tmp_path / "configs/metadata.json").write_text(json.dumps(about))
    weights = read_weights(tmp_path)
    assert same(weights.tensors)
    assert weights.origin == f"MONAI bundle {tmp_path}, Spleen CT 0.5.3 (its classes: 0 background, 1 spleen)"


def test_a_bundle_without_metadata_is_read_too(tmp_path):
    saved(tmp_path / "models/model.pt", STATE)
    assert read_weights(tmp_path).origin == f"MONAI bundle {tmp_path}"


def test_a_run_stands_for_its_best_checkpoint(tmp_path):
    saved(tmp_path / "checkpoints/best.ckpt", {"state_dict": STATE})
    assert read_weights(tmp_path).origin == str(tmp_path / "checkpoints/best.ckpt")


def test_any_other_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="neither a run directory nor a MONAI bundle"):
        read_weights(tmp_path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    # A pickled function, where a state dict could hold anything.
    with pytest.raises(CheckpointError, match="could not be read"):
        read_weights(saved(tmp_path / "a.pt", {"state_dict": STATE, "call": partial(print, "run")}))


def test_a_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        read_weights(saved(tmp_path / "a.pt", {"epoch": 3}))
