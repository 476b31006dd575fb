"""A net as a file computes what the net does, at any size, with every norm of the registry."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from torch import nn

from ics_apps.nets import UNet
from ics_apps.nets.export import AnySize, ExportError, OnnxNet, export_net
from ics_apps.norms import list_norms, make_norm, norm_entry

KINDS = ("onnx", "torch_export")
FEW = (("batch", "onnx"), ("group", "onnx"), ("instance", "torch_export"))
NEED_A_CONDITION = [name for name in list_norms() if norm_entry(name).needs_condition and 2 in norm_entry(name).dims]
ON_IMAGES = [name for name in list_norms() if name not in NEED_A_CONDITION and 2 in norm_entry(name).dims]
SIZES = [(1, 16, 16), (3, 17, 22), (2, 9, 40)]


def trained(dim=2, **options):
    """A small net whose running statistics and affine parameters have left their start values."""
    torch.manual_seed(0)
    net = UNet(2, 3, dim, **{"width": 8, "depth": 1, **options})
    for _ in range(2):
        net(2 * torch.randn(4, 2, *(16,) * dim) + 0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    return net.eval()


def read(kind, content):
    return OnnxNet(content) if kind == "onnx" else torch.export.load(io.BytesIO(content)).module()


def assert_same(net, file, shapes):
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(file(x), net(x), rtol=0, atol=1e-4)


FOR_EACH_NORM = [
    pytest.param(norm, kind, marks=() if (norm, kind) in FEW else pytest.mark.slow)
    for norm in ON_IMAGES
    for kind in KINDS
]


@pytest.mark.parametrize(("norm", "kind"), FOR_EACH_NORM)
def test_the_file_computes_what_the_net_does_at_any_size(norm, kind):
    net = trained(norm=norm, normalize_streams="up" if norm_entry(norm).acts_on_weight else "both")
    exported = export_net(net, 2, (20, 24), kind, {})
    assert exported.fixed == ""
    assert_same(net, read(kind, exported.content), [(batch, 2, *size) for batch, *size in SIZES])


def test_an_eps_of_a_hundred_millionth_survives():
    # At positions where all channels are zero it alone keeps the result from being 0 / 0.
    norm = make_norm("pixel", 2)
    file = OnnxNet(export_net(norm, 2, (4, 5), "onnx", {}).content)
    assert torch.equal(file(torch.zeros(1, 2, 4, 5)), torch.zeros(1, 2, 4, 5))


def test_a_file_that_gives_nan_is_refused(monkeypatch):
    monkeypatch.setattr("ics_apps.nets.export._reader", lambda kind: lambda content: lambda x: x * float("nan"))
    with pytest.raises(ExportError, match="differs from the net by nan"):
        export_net(nn.Identity(), 2, (4, 5), "torch_export", {})


@pytest.mark.parametrize("norm", NEED_A_CONDITION)
def test_a_norm_that_needs_more_than_the_image_says_so_in_one_line(norm):
    net = UNet(2, 3, width=8, depth=1, norm="none", site_norms={"bottleneck": norm})
    with pytest.raises(ExportError, match="does not run on an image alone: ") as caught:
        export_net(net, 2, (8, 8), "torch_export", {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dim", "kind"), [(1, "onnx"), (3, "onnx"), (3, "torch_export")])
def test_signals_and_volumes_too(kind, dim):
    net = trained(dim, norm="batch")
    exported = export_net(net, 2, (12, 13, 14)[:dim], kind, {})
    assert exported.fixed == ""
    assert_same(net, read(kind, exported.content), [(3, 2, *(11, 8, 10)[:dim])])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"fold": 2}, {"upsample": "nearest"}, {"order": "conv-act-norm"}], ids=str)
def test_the_other_forms_of_the_net_too(kind, options):
    net = trained(**options)
    assert_same(net, read(kind, export_net(net, 2, (16, 20), kind, {}).content), [(1, 2, 19, 21)])


@pytest.mark.parametrize("size", [(8, 8), (13, 10), (1, 7)])
def test_any_size_changes_nothing_about_the_net(size):
    net = trained(norm="none")
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        torch.testing.assert_close(AnySize(net)(x), net(x), rtol=0, atol=1e-6)


class Fixed(nn.Module):
    """Its weights are as large as its input."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.rand(8, 8))

    def forward(self, x):
        return x + self.shift


@pytest.mark.parametrize("kind", KINDS)
def test_a_net_for_one_size_is_fixed_to_it_and_says_why(kind):
    net = Fixed()
    exported = export_net(net, 2, (8, 8), kind, {})
    assert exported.fixed.startswith("space is fixed to 8 x 8: ")
    assert "\n" not in exported.fixed
    assert exported.shapes == ((1, 2, 8, 8), (3, 2, 8, 8))
    assert_same(net, read(kind, exported.content), [(4, 2, 8, 8)])


def test_metadata_come_back():
    metadata = {"class_names": ["background", "café"], "normalize": None, "facts": {"dim": 2}}
    net = trained()
    assert OnnxNet(export_net(net, 2, (8, 8), "onnx", metadata).content).metadata == metadata
    extra = {"metadata.json": ""}
    torch.export.load(io.BytesIO(export_net(net, 2, (8, 8), "torch_export", metadata).content), extra_files=extra)
    assert json.loads(extra["metadata.json"]) == metadata


def test_the_net_is_left_as_it_was():
    net = trained().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    export_net(net, 2, (8, 8), "torch_export", {})
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_file_that_differs_is_refused(monkeypatch):
    class Moody(nn.Module):
        """It adds one whenever it is not traced."""

        def forward(self, x):
            return x if torch.compiler.is_compiling() else x + 1

    with pytest.raises(ExportError, match=r"differs from the net by .* more than 1e-04; export as 'onnx' instead\."):
        export_net(Moody(), 2, (8, 8), "torch_export", {})


def test_a_net_that_reads_its_values_cannot_be_traced():
    class Reading(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ExportError, match="the net cannot be traced: ") as caught:
        export_net(Reading(), 2, (8, 8), "torch_export", {})
    assert "\n" not in str(caught.value)


def test_without_the_extra_the_command_to_install_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'ics-apps\[onnx\]'"):
        export_net(trained(), 2, (8, 8), "onnx", {})


def test_an_unknown_format_is_refused():
    with pytest.raises(ExportError, match="format is 'tflite'; allowed are 'onnx', 'torch_export'"):
        export_net(trained(), 2, (8, 8), "tflite", {})


def test_what_is_no_onnx_file_is_refused(tmp_path):
    with pytest.raises(ExportError, match="there is no ONNX file"):
        OnnxNet(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ExportError, match="could not be read as ONNX") as caught:
        OnnxNet(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)
