"""Nets of other packages (MONAI, segmentation_models_pytorch, torchvision) in the form that our tasks ask for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from inspect import isfunction
from typing import Any, get_type_hints

from torch import Tensor, nn

from ics_apps.nearest import did_you_mean
from ics_apps.nets.arguments import check_positive
from ics_apps.nets.padding import pad_far_ends
from ics_apps.norms import NormError, NormSpec, convert_norms

KEEP = "keep"


class AdaptedNet(nn.Module):
    """A net with argument names of its own, made from (in_channels, num_classes, dim, norm).

    YAML::

        net:
          class_path: ics_apps.nets.AdaptedNet
          init_args:
            make: monai.networks.nets.UNet
            arguments:
              spatial_dims: "{dim}"
              in_channels: "{in_channels}"
              out_channels: "{num_classes}"
              channels: [16, 32, 64, 128]
              strides: [2, 2, 2]
            stride: 8

    Args:
        in_channels: C of the input (B, C, *S).
        num_classes: K of the output logits (B, K, *S).
        dim: Number of space axes.
        norm: What the net's norms are converted to by `convert_norms`, those of `where`.
        make: The class or function that makes the net, or the dotted path of a module's class or of a function that is
            annotated with one.
        arguments: Its keyword arguments; "{in_channels}", "{num_classes}" and "{dim}" stand for these numbers.
        where: Which norms are converted: patterns of names, as in `convert_norms`; None for all, "keep" for none.
        stride: Sizes are padded to multiples of it by repeating the far border, and the logits cropped; for nets that
            refuse other sizes.
        output: Which entry of the net's output the logits are, where it is no tensor: a key of a dict, an index of a
            list.

    Attributes:
        net: The net as made, with its norms converted.

    Raises:
        NormError: A norm cannot take the place of the net's.
        ValueError: The net cannot be imported or made; the message says from what.

    Example:
        >>> import torch
        >>> net = AdaptedNet(
        ...     1, 3, norm="none", make="torch.nn.Conv2d",
        ...     arguments={"in_channels": "{in_channels}", "out_channels": "{num_classes}", "kernel_size": 1},
        ...     where="keep",
        ... )
        >>> net(torch.zeros(2, 1, 5, 5)).shape
        torch.Size([2, 3, 5, 5])

    Reference: ours.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dim: int = 2,
        norm: NormSpec = "batch",
        *,
        make: str | Callable[..., nn.Module],
        arguments: dict[str, Any],
        where: str | list[str] | None = None,
        stride: int = 1,
        output: str | int | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, num_classes=num_classes, stride=stride)
        numbers = {"in_channels": in_channels, "num_classes": num_classes, "dim": dim}
        maker = imported(make) if isinstance(make, str) else make
        filled = {name: _filled(value, numbers) for name, value in arguments.items()}
        try:
            self.net = maker(**filled)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{_name(maker)} cannot be made from {filled}: {error}") from error
        if not isinstance(self.net, nn.Module):
            raise ValueError(f"{_name(maker)} made a {type(self.net).__name__}, not a torch module")
        self.stride = stride
        self.output = output
        if where != KEEP:
            try:
                convert_norms(self.net, norm, where=where)
            except NormError as error:
                raise NormError(f"{_name(maker)}: {error}; where='keep' leaves its own norms") from error

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, *S) of an input (B, C, *S)."""
        size = x.shape[2:]
        y = self.net(pad_far_ends(x, [self.stride] * len(size)))
        if self.output is not None:
            y = y[self.output]
        if not isinstance(y, Tensor):
            known = f" with the keys {', '.join(map(repr, y))}" if isinstance(y, Mapping) else ""
            raise ValueError(f"the net's output is a {type(y).__name__}{known}; say by `output` which entry is meant")
        return y[(slice(None), slice(None), *map(slice, size))]


def imported(path: str) -> Callable[..., Any]:
    """The class or function that a dotted path names.

    Raises:
        ValueError: There is none; the sentence names what is missing.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"make is {path!r}, whose module cannot be imported: {error}") from error
    found = getattr(module, name, None)
    if found is None:
        raise ValueError(f"make is {path!r}, but {module_name} has no {name!r}{did_you_mean(name, dir(module))}")
    # A recipe may come from elsewhere: what it names is called only if it makes modules.
    made = found if isinstance(found, type) else get_type_hints(found).get("return") if isfunction(found) else None
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise ValueError(f"make is {path!r}, which is neither a torch module's class nor a function annotated with one")
    return found  # type: ignore[no-any-return]


def _filled(value: Any, numbers: Mapping[str, int]) -> Any:
    """A value with the numbers in place of their names, also inside lists and dicts."""
    if isinstance(value, Mapping):
        return {key: _filled(one, numbers) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_filled(one, numbers) for one in value)
    if not (isinstance(value, str) and value.startswith("{") and value.endswith("}")):
        return value
    name = value[1:-1]
    if name not in numbers:
        raise ValueError(f"arguments hold {value!r}{did_you_mean(name, numbers)} Known are {', '.join(numbers)}")
    return numbers[name]


def _name(maker: Callable[..., Any]) -> str:
    return f"{maker.__module__}.{getattr(maker, '__qualname__', type(maker).__name__)}"
