"""How the outputs of one forward of a layer are read: worked out once, and prepared before each sampled step.

Between two layers of a net Python runs cold, several times as slow as elsewhere: what a hook need not do is done here.
"""

from __future__ import annotations

from torch import Tensor

from ics_apps.probes.activations.arena import Arena
from ics_apps.probes.activations.norm_state import Grid
from ics_apps.probes.activations.readings import Pairs, Reading
from ics_apps.probes.activations.sampling import places_of, read


class Plan:
    """The places at which outputs of one form (shape, strides, dtype, device) are read, and the memory they go to.

    Args:
        index: number of the layer.
        tag: tag under which it runs.
        call: which forward of the layer under this tag.
        x: the first such output.
        axis: its channel axis.
        size: the most values to read of it.
        gradient_size: the most values to read of the gradient with respect to it.
        batch: samples that a batch norm's statistics run over; 0 for other layers, which have no pairs.
    """

    def __init__(
        self, index: int, tag: str, call: int, x: Tensor, axis: int | None, size: int, gradient_size: int, batch: int
    ) -> None:
        self._of = index, tag, call, str(x.dtype).removeprefix("torch."), x.numel(), x.device
        self._shape, self._strides, self._dtype, self.device = x.shape, x.stride(), x.dtype, x.device
        self.axis, self.ndim = axis, x.ndim
        self._size, self._gradient_size = size, gradient_size
        self._batch = batch
        self._grid: Grid | None = None

    def fits(self, x: Tensor) -> bool:
        """Whether it was made for an output of this form."""
        same = x.shape == self._shape and x.stride() == self._strides
        return same and x.dtype is self._dtype and x.device == self.device

    def prepare(self, arena: Arena, turn: int) -> None:
        """Choose the places of one sampled step, and the memory for what is read there."""
        self._turn = turn
        self._where = places_of(self._shape, self._strides, self._size, turn, self.axis)
        slot, self._target = arena.reserve(self._where.count)
        self.reading = Reading(*self._of, self._where, self.axis is not None, slot)
        self._gradient_where = places_of(self._shape, self._strides, self._gradient_size, turn)
        self._gradient_slot, self._gradient_target = arena.reserve(self._gradient_where.count)
        if self._batch and self.axis is not None:
            grid = self._grid = Grid.choose(self._shape, self.axis, turn=turn)
            pairs, target = arena.reserve(grid.number)
            self._pairs_target = target.view(grid.shape)
            per_channel = self.reading.numel // (self._shape[0] * self._shape[self.axis])
            self.reading.pairs = Pairs(grid, pairs, self._batch, per_channel)

    def read(self, x: Tensor) -> Reading:
        """Copy the values of an output that fits."""
        self._target.copy_(read(x, self._where))
        if self._grid is not None:
            self._pairs_target.copy_(self._grid.read(x))
        return self.reading

    def read_gradient(self, gradient: Tensor) -> None:
        """Copy the values of the gradient with respect to that output."""
        where = self._gradient_where
        if gradient.stride() != self._strides:
            where = places_of(gradient.shape, gradient.stride(), self._gradient_size, self._turn)
        self._gradient_target.copy_(read(gradient, where))
        self.reading.gradient = self._gradient_slot
