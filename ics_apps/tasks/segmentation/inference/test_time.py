"""The symmetries of an image: flips and rotations by 90 degrees, applied to it and undone on its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Symmetry:
    """An exchange of axes, then flips; no value is interpolated.

    Attributes:
        order: For each axis of the result, the axis of the input that becomes it.
        flipped: Axes of the result that are reversed.
    """

    order: tuple[int, ...]
    flipped: frozenset[int] = frozenset()

    def apply(self, image: Tensor) -> Tensor:
        r"""The image (B, C, \*S) in the new view."""
        return image.permute(0, 1, *(axis + 2 for axis in self.order)).flip([axis + 2 for axis in self.flipped])

    def undo(self, prediction: Tensor) -> Tensor:
        """The prediction of `apply(image)` in the view of the image.

        Example:
            >>> import torch
            >>> image, turn = torch.rand(1, 1, 2, 3), Symmetry((1, 0), frozenset({0}))
            >>> torch.equal(turn.undo(turn.apply(image)), image)
            True
        """
        back = [self.order.index(axis) + 2 for axis in range(len(self.order))]
        return prediction.flip([axis + 2 for axis in self.flipped]).permute(0, 1, *back)

    def then(self, other: Symmetry) -> Symmetry:
        """Both, one after the other."""
        order = tuple(self.order[axis] for axis in other.order)
        moved = frozenset(new for new, old in enumerate(other.order) if old in self.flipped)
        return Symmetry(order, moved ^ other.flipped)


def symmetries(dim: int, flips: Sequence[int] = (), planes: Sequence[tuple[int, int]] = ()) -> list[Symmetry]:
    """All symmetries made of flips and quarter turns, the identity first; each costs one prediction.

    Flips of k axes are 2^k. With the turns of one plane and its flips there are 8; of all planes of a cube 24, with
    flips 48.

    Args:
        dim: Number of axes of space.
        flips: Axes that may be reversed.
        planes: Pairs of axes that may be turned; see `equal_planes`.

    Raises:
        ValueError: An axis is not in [0, dim).

    Example:
        >>> len(symmetries(2, flips=[0, 1])), len(symmetries(2, planes=[(0, 1)])), len(symmetries(2, [0, 1], [(0, 1)]))
        (4, 4, 8)
    """
    for axis in [*flips, *(axis for plane in planes for axis in plane)]:
        if not 0 <= axis < dim:
            raise ValueError(f"axis {axis} is not one of the {dim} axes of space; axes are counted from 0")
    same = tuple(range(dim))
    steps = [Symmetry(same, frozenset({axis})) for axis in flips]
    for first, second in planes:
        swapped = list(same)
        swapped[first], swapped[second] = second, first
        steps.append(Symmetry(tuple(swapped), frozenset({first})))
    found = {Symmetry(same): None}
    waiting = list(found)
    while waiting:
        reached = [new for known in waiting for new in map(known.then, steps)]
        waiting = [new for new in dict.fromkeys(reached) if new not in found]
        found |= dict.fromkeys(waiting)
    return list(found)


def equal_planes(spacing: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs of axes whose spacing is the same to a thousandth: only there a quarter turn is a view of the same thing.

    Example:
        >>> equal_planes([0.5, 0.5, 5.0])
        [(0, 1)]
    """
    pairs = [(first, second) for first in range(len(spacing)) for second in range(first + 1, len(spacing))]
    return [(i, j) for i, j in pairs if abs(spacing[i] - spacing[j]) <= 1e-3 * max(spacing[i], spacing[j])]
