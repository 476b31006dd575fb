"""A trained net as one file for other programs: written, held against the net, read back. Nothing is trained here.

ONNX needs the packages of the extra `onnx`; they are imported where they are used.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

ExportFormat = Literal["onnx", "torch_export"]
SUFFIXES: Final[dict[ExportFormat, str]] = {"onnx": ".onnx", "torch_export": ".pt2"}
TOLERANCE: Final = 1e-4
_METADATA: Final = "metadata.json"  # the extra file of a torch.export archive
_NEEDS_ONNX: Final = "ONNX files need onnx, onnxscript and onnxruntime: pip install 'ics-apps[onnx]'"


class ExportError(ValueError):
    """A net that cannot be exported, or whose file does not compute what the net does."""


@dataclass(frozen=True)
class ExportedNet:
    """A net as the content of a file.

    Attributes:
        content: The bytes of the file.
        difference: The largest difference of the file's logits from the net's, in units of max(1, largest logit).
        shapes: The inputs (B, C, *S) on which that was found.
        fixed: Why axes of the input are fixed to the size of the example; empty if batch and space may be of any size.
    """

    content: bytes
    difference: float
    shapes: tuple[tuple[int, ...], ...]
    fixed: str


def export_net(
    net: nn.Module, channels: int, size: Sequence[int], kind: ExportFormat, metadata: Mapping[str, Any]
) -> ExportedNet:
    r"""Make the file of a net, float32 (B, C, \*S) to logits (B, K, \*S), in evaluation mode on the CPU.

    Batch and space axes may have any size in the file if the net's code allows it, else the batch alone, else none.
    A net with the attribute `stride` is given inputs whose far ends are repeated up to multiples of it, and its output
    is cropped, inside the file. The file is run on several shapes and refused if it differs from the net.

    Args:
        net: The net; it is not changed.
        channels: C.
        size: One number for each axis of S; axes that must be fixed are fixed to it.
        kind: "onnx", or "torch_export" for an archive that `torch.export.load` reads.
        metadata: Values by name that JSON can hold, kept in the file.

    Raises:
        ExportError: The net cannot run on an image alone, cannot be traced, or the file differs by more than 1e-4.
        ImportError: "onnx" without the extra `onnx`.

    Example:
        >>> from ics_apps.nets import UNet
        >>> exported = export_net(UNet(1, 2, width=2, depth=1), 1, (9, 12), "torch_export", {"class_names": ["a", "b"]})
        >>> exported.difference < 1e-4, exported.fixed
        (True, '')
    """
    if kind not in SUFFIXES:
        raise ExportError(f"format is {kind!r}; allowed are {', '.join(map(repr, SUFFIXES))}.")
    if kind == "onnx":
        _require_onnx()
    net = copy.deepcopy(net).eval().cpu().float()
    _run(net, _image((1, channels, *size)))
    program, free, fixed = _traced(AnySize(net), channels, size)
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    shapes = _shapes_to_check(channels, size, free, _stride(net))
    content, difference = b"", float("inf")
    for write in _WRITERS[kind]:
        content = write(program, texts)
        run = _reader(kind)(content)
        # torch's maximum, which keeps a NaN.
        difference = float(torch.tensor([_difference(net, run, shape) for shape in shapes]).max())
        if difference <= TOLERANCE:
            break
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the exported net differs from the net by {difference:.1e} of its logits, more than {TOLERANCE:.0e}; "
            f"export as {' or '.join(repr(other) for other in SUFFIXES if other != kind)} instead."
        )
    return ExportedNet(content, difference, shapes, fixed)


class AnySize(nn.Module):
    """A net for inputs of any size, with no choice that depends on the size: a trace of it holds for all sizes.

    Args:
        net: Its attribute `stride`, if it has one, divides the sizes it is given.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.stride = _stride(net)

    def forward(self, x: Tensor) -> Tensor:
        """Repeat the far border up to a multiple of the stride, run, crop."""
        if self.stride == 1:
            y: Tensor = self.net(x)
            return y
        # Copies and no views: whether a view is contiguous depends on the size, and a trace would hold on to it.
        sizes = list(enumerate(x.shape[2:], start=2))
        for axis, size in sizes:
            padded = (size + self.stride - 1) // self.stride * self.stride
            x = x.index_select(axis, torch.arange(padded, device=x.device).clamp(max=size - 1))
        y = self.net(x)
        for axis, size in sizes:
            y = y.index_select(axis, torch.arange(size, device=y.device))
        return y


class OnnxNet(nn.Module):
    r"""Stand in for a net by its ONNX file, run by ONNX Runtime on the CPU.

    Args:
        file: The file, or its bytes.

    Attributes:
        metadata: What `export_net` was given; of another program's file its texts.

    Raises:
        ExportError: There is no file, or ONNX Runtime cannot read it.
        ImportError: The extra `onnx` is not installed.
    """

    def __init__(self, file: Path | bytes) -> None:
        super().__init__()
        onnxruntime = _require_onnx()
        if isinstance(file, Path) and not file.is_file():
            raise ExportError(f"there is no ONNX file {file}; write one with `ics-apps export RUN`.")
        content = file if isinstance(file, bytes) else file.read_bytes()
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # its errors are raised as well
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise ExportError(f"{file!s:.80} could not be read as ONNX: {_first_line(error)}") from error
        texts = self._session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = {name: _value(text) for name, text in texts.items()}
        self._input = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        r"""Logits (B, K, \*S) of an image (B, C, \*S), on the image's device."""
        (logits,) = self._session.run(None, {self._input: x.detach().float().cpu().numpy()})
        return torch.from_numpy(logits).to(x.device)


def _stride(net: nn.Module) -> int:
    stride = getattr(net, "stride", 1)
    return stride if isinstance(stride, int) else 1


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # another program's metadata
        return text


def _require_onnx() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(_NEEDS_ONNX) from error
    return onnxruntime


def _image(shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0))


def _run(net: nn.Module, example: Tensor) -> None:
    """Let a net say itself why it does not run on an image alone (a norm that waits for a label, a wrong size)."""
    try:
        with torch.no_grad():
            net(example)
    except Exception as error:
        raise ExportError(f"the net does not run on an image alone: {_first_line(error)}") from error


def _traced(
    module: AnySize, channels: int, size: Sequence[int]
) -> tuple[torch.export.ExportedProgram, tuple[int, ...], str]:
    """The program, the axes that may have any size, and why others may not."""
    # Sizes that are equal before or after padding by chance would be taken for equal always.
    unlike = [module.stride * (3 + 2 * axis) + 5 + axis for axis in range(len(size))]
    fixed_image = _image((2, channels, *size))
    reason = ""
    for free, example in (
        ((0, *range(2, fixed_image.dim())), _image((3, channels, *unlike))),
        ((0,), fixed_image),
        ((), fixed_image),
    ):
        dynamic = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
        try:
            with torch.no_grad(), _silent():
                program = torch.export.export(module, (example,), dynamic_shapes={"x": dynamic})
        except Exception as error:  # tracing raises whatever the net's code raises
            reason = reason or _first_line(error)
            continue
        sizes = " x ".join(map(str, size))
        held = f"space is fixed to {sizes}" if free else f"batch is fixed to {len(example)} and space to {sizes}"
        return program, free, f"{held}: {reason}" if reason else ""
    raise ExportError(f"the net cannot be traced: {reason}")


def _as_onnx(program: torch.export.ExportedProgram, texts: Mapping[str, str], *, optimize: bool) -> bytes:
    try:
        with _silent():
            written = torch.onnx.export(
                program,
                (),
                dynamo=True,
                optimize=optimize,
                verbose=False,
                input_names=["image"],
                output_names=["logits"],
            )
    except Exception as error:
        raise ExportError(f"the net cannot be written as ONNX: {_first_line(error)}") from error
    if written is None:
        raise ExportError("the net cannot be written as ONNX: torch's exporter gave no program.")
    written.model.metadata_props.update(texts)
    file = io.BytesIO()
    written.save(file)  # type: ignore[arg-type]
    return file.getvalue()


def _as_archive(program: torch.export.ExportedProgram, texts: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    with _silent():
        torch.export.save(
            program, file, extra_files={_METADATA: json.dumps({k: json.loads(v) for k, v in texts.items()})}
        )
    return file.getvalue()


# onnxscript 0.7 optimizes an added eps of 1e-8 away, so plain first; ONNX Runtime 1.32 fails on some plain 3-D graphs.
_WRITERS: Final[dict[ExportFormat, tuple[Callable[..., bytes], ...]]] = {
    "onnx": (partial(_as_onnx, optimize=False), partial(_as_onnx, optimize=True)),
    "torch_export": (_as_archive,),
}


def _reader(kind: ExportFormat) -> Callable[[bytes], Callable[[Tensor], Tensor]]:
    return OnnxNet if kind == "onnx" else lambda content: torch.export.load(io.BytesIO(content)).module()


def _shapes_to_check(
    channels: int, size: Sequence[int], free: Sequence[int], stride: int
) -> tuple[tuple[int, ...], ...]:
    """Shapes of other kinds than the example's, where they may differ: equal sides, odd and even, multiples and not."""
    if not free:
        return ((2, channels, *size),)
    if len(free) == 1:
        return tuple((batch, channels, *size) for batch in (1, 3))
    axes = range(len(size))
    odd = (1, channels, *(2 * stride + 3 + 2 * axis for axis in axes))
    multiples = (4, channels, *(stride * (5 - axis) for axis in axes))
    return odd, multiples, (2, channels, *(4 * stride for _ in axes))


def _difference(net: nn.Module, run: Callable[[Tensor], Tensor], shape: Sequence[int]) -> float:
    x = _image(shape)
    with torch.no_grad():
        expected = net(x)
        try:
            given = run(x)
        except Exception:  # the runtime's own errors have no common class
            return float("inf")
    return float((given - expected).abs().max() / expected.abs().max().clamp(min=1))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


@contextmanager
def _silent() -> Iterator[None]:
    """Hold back what torch's exporters say about their own inside."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
