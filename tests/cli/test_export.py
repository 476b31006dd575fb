"""From a run to a file, and from the file to the masks that the run itself would write."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ics_apps.cli import main
from ics_apps.nets.export import OnnxNet
from ics_apps.runs.checkpoints import read_checkpoint

TINY = str(Path(__file__).parents[1] / "runs" / "tiny.yaml")
SIZES = ((16, 16), (21, 30), (40, 17))


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of several sizes, and further images beside it."""
    folder = tmp_path_factory.mktemp("finished")
    for part in ("data/images", "data/masks", "new"):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        mask = np.zeros((height, width), np.uint8)
        mask[4:12, 5:14] = 7
        image = (mask * 20 + random.integers(0, 60, mask.shape)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"data/images/{number}.png")
        Image.fromarray(mask).save(folder / f"data/masks/{number}.png")
        Image.fromarray(image.T).save(folder / f"new/{number}.png")
    data = ["--data", "ics_apps.tasks.segmentation.data.ImageMaskFolderData", "--data.root", str(folder / "data")]
    sizes = ["--data.patch_size", "16", "--data.batch_size", "4", "--data.patches_per_epoch", "32"]
    data += ["--data.classes", "{outside: 0, square: 7}", "--data.predict_root", str(folder / "new")]
    own = ["--model.norm", "instance", "--model.net.normalize_streams", "both"]
    (folder / "base.yaml").write_text(Path(TINY).read_text().partition("data:")[0])
    assert main(["fit", str(folder / "base.yaml"), "--out", str(folder / "run"), *data, *sizes, *own]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def onnx_file(finished: Path) -> Path:
    assert main(["export", str(finished), "--out", str(finished / "deep/net.onnx")]) == 0
    return finished / "deep/net.onnx"


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def test_the_exported_run_predicts_the_masks_of_its_checkpoint(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished)]) == 0
    told = capsys.readouterr().out
    assert f"{finished}/model.onnx: differs from the net by at most" in told
    assert "batch and space may have any size" in told
    assert main(["predict", str(finished)]) == 0
    expected = masks(finished / "predictions")
    assert main(["predict", str(finished), "--onnx", str(finished / "model.onnx")]) == 0
    given = masks(finished / "predictions")
    assert [mask.shape for mask in expected.values()] == [(width, height) for height, width in SIZES]
    assert {value for mask in expected.values() for value in np.unique(mask)} == {0, 7}
    assert all(np.array_equal(given[name], expected[name]) for name in expected)


def test_a_file_tells_classes_mask_values_and_normalisation(onnx_file: Path) -> None:
    metadata = OnnxNet(onnx_file).metadata
    facts = metadata["data_facts"]
    assert (facts["class_names"], facts["mask_values"]) == (["outside", "square"], [0, 7])
    assert (facts["dim"], facts["in_channels"]) == (2, 1)
    assert metadata["normalize"] == "case"


def test_the_how_to_runs_in_a_program_without_this_package(onnx_file: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/export.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    shutil.copy(onnx_file, "model.onnx")
    names: dict[str, np.ndarray] = {}
    exec(compile(block, "export.md", "exec"), names)  # noqa: S102 - our own page
    assert names["mask"].shape == (1, 75, 101)
    assert set(np.unique(names["mask"])) <= {0, 7}


def test_an_onnx_file_needs_no_checkpoint(finished: Path, onnx_file: Path) -> None:
    (finished / "checkpoints/best.ckpt").rename("best.ckpt")
    try:
        assert main(["predict", str(finished / "config.yaml"), "--onnx", str(onnx_file), "--out", "elsewhere"]) == 0
    finally:
        Path("best.ckpt").rename(finished / "checkpoints/best.ckpt")
    assert len(masks(Path("elsewhere/predictions"))) == len(SIZES)


def test_the_archive_of_torch_holds_the_same_net(finished: Path) -> None:
    assert main(["export", str(finished), "--format", "torch_export"]) == 0
    program = torch.export.load(finished / "model.pt2").module()
    weights = read_checkpoint(finished / "checkpoints/best.ckpt")["state_dict"]
    given = {name.removeprefix("net."): tensor for name, tensor in program.state_dict().items()}
    assert given
    assert all(torch.equal(tensor, weights[f"net.{name}"]) for name, tensor in given.items())


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("ics-apps:") == 1
    return error


def test_a_run_without_a_checkpoint_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("empty/config.yaml").write_text("{}")
    assert "empty has no checkpoints/best.ckpt yet: train first" in refused(["export", "empty"], capsys)
    assert "there is no recipe or file 'nowhere'" in refused(["export", "nowhere"], capsys)


def test_a_checkpoint_without_facts_has_no_net(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}}, "bare.ckpt")
    error = refused(["export", str(finished), "--ckpt_path", "bare.ckpt"], capsys)
    assert "SegmentationTask has no net to export" in error


def test_without_onnx_the_extra_is_named(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'ics-apps[onnx]'" in refused(["export", str(finished), "--out", "net.onnx"], capsys)
    assert not Path("net.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["predict", TINY, "--onnx", "net.onnx"], "so the masks need a folder to go to: --out DIR"),
        (["test", TINY, "--onnx", "net.onnx"], "--onnx goes with `ics-apps predict`"),
        (["predict", TINY, "--onnx", "net.onnx", "--ckpt_path", "best"], "leave out --ckpt_path best"),
        (["predict", TINY, "--onnx", "net.onnx", "--out", "here"], "there is no ONNX file net.onnx"),
    ],
)
def test_what_cannot_go_with_onnx_is_told(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line in refused(arguments, capsys)
