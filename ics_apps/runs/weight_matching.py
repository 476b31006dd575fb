"""Which tensors of a file belong to which of a model, by name and shape. Files are read in `weight_files`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Match:
    """What of a file fits a model.

    Attributes:
        tensors: The model's name -> the value it takes.
        adapted: The model's name -> what was done to the file's tensor.
        other_shape: The model's name -> the two shapes, where they differ and nothing can be done.
        renamed: The beginning of the names in the file, and what stands for it in the model.
        unused: Names in the file that the model has not.
    """

    tensors: dict[str, Tensor]
    adapted: dict[str, str]
    other_shape: dict[str, str]
    renamed: tuple[str, str]
    unused: list[str]


def match_weights(own: Mapping[str, Tensor], given: Mapping[str, Tensor], block: int = 1) -> Match:
    """Find for the tensors of a file their places in a model.

    One beginning of the names may differ, such as `model.` or `` in the file and `net.encoder.` in the model: of all
    such pairs that one is taken under which most tensors agree in the rest of the name, where one that agrees in shape
    too counts twice. A tensor that agrees in name only is then left out, but for the weight of the input convolution,
    see `adapt_input_channels`.

    Args:
        own: The model's state dict.
        given: The file's.
        block: Positions that the model folds into each input channel (`fold ** dim` of `ics_apps.nets.UNet`).

    Example:
        >>> import torch
        >>> own = {"net.encoder.conv.weight": torch.zeros(4, 1, 3), "net.head.weight": torch.zeros(3, 4, 1)}
        >>> match = match_weights(own, {"conv.weight": torch.ones(4, 1, 3), "fc.weight": torch.ones(9, 4)})
        >>> list(match.tensors), match.renamed, match.unused
        (['net.encoder.conv.weight'], ('', 'net.encoder.'), ['fc.weight'])

    Reference: ours; timm renames by hand-written rules for each family.
    """
    there, here = _renaming(own, given)
    places = {name: here + name.removeprefix(there) for name in given if name.startswith(there)}
    places = {name: place for name, place in places.items() if place in own}
    first = _input_channels(own, given, places)
    tensors, adapted, other_shape = {}, {}, {}
    for name, place in places.items():
        value, wanted = given[name], own[place]
        if value.shape == wanted.shape:
            tensors[place] = value
        elif first == (value.shape[1:2], wanted.shape[1:2]) and _differ_in_axis_1(value, wanted):
            tensors[place] = adapt_input_channels(value, wanted.shape[1], block)
            adapted[place] = f"mean of {value.shape[1] // block} input channels for {wanted.shape[1] // block}"
        else:
            other_shape[place] = f"{tuple(value.shape)} there, {tuple(wanted.shape)} here"
    return Match(tensors, adapted, other_shape, (there, here), [name for name in given if name not in places])


def adapt_input_channels(weight: Tensor, channels: int, block: int = 1) -> Tensor:
    r"""The weight of an input convolution, for another number of input channels.

    With C channels before and C' now, every new channel takes W'_j = (1 / C') sum_i W_i. A net that is given one image
    in all of its new channels then answers as the old one did to that image in all of its channels.

    Args:
        weight: (O, C block, \*K).
        channels: C' block.
        block: Neighbouring entries of axis 1 that are positions of one channel.

    Example:
        >>> import torch
        >>> adapt_input_channels(torch.tensor([[[1.0], [2.0], [6.0]]]), 1)
        tensor([[[9.]]])

    Reference: ours; timm's `adapt_input_conv` does the same for one new channel.
    """
    out, _, *kernel = weight.shape
    total = weight.reshape(out, -1, block, *kernel).sum(1, keepdim=True) / (channels // block)
    return total.expand(out, channels // block, block, *kernel).reshape(out, channels, *kernel)


def _renaming(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[str, str]:
    """The beginning in the file and in the model under which most names agree; none, if that is among the best."""
    by_last: dict[str, list[str]] = defaultdict(list)
    for name in own:
        by_last[name.rpartition(".")[2]].append(name)
    votes: Counter[tuple[str, str]] = Counter({("", ""): 0})
    for there, value in given.items():
        for here in by_last[there.rpartition(".")[2]]:
            for beginnings in _beginnings(there, here):
                votes[beginnings] += 2 if own[here].shape == value.shape else 1
    return votes.most_common(1)[0][0]


def _beginnings(there: str, here: str) -> Iterable[tuple[str, str]]:
    """What stands before the longest common end of two names; nothing if they have only the last word in common."""
    if there == here:
        return [("", "")]
    first, second = there.split("."), here.split(".")
    same = 0
    while same < min(len(first), len(second)) and first[-1 - same] == second[-1 - same]:
        same += 1
    if same < 2:  # every layer has a `weight`
        return []
    return [(_joined(first[: len(first) - same]), _joined(second[: len(second) - same]))]


def _joined(words: list[str]) -> str:
    return "".join(f"{word}." for word in words)


def _input_channels(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], places: Mapping[str, str]
) -> tuple[object, object] | None:
    """Axis 1 of the first convolution, in the file and in the model; a residual branch beside it has the same."""
    for name, place in places.items():
        if own[place].dim() >= 3:
            return given[name].shape[1:2], own[place].shape[1:2]
    return None


def _differ_in_axis_1(value: Tensor, wanted: Tensor) -> bool:
    return value.dim() >= 3 and value.shape[:1] == wanted.shape[:1] and value.shape[2:] == wanted.shape[2:]
