"""Random training patches: which patch (sampler), where from (geometry), its pixels (dataset).

A patch is a function of (seed, epoch, index) alone. The number of workers, the batch size, the number of processes and
a stop and resume in between change nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from ics_apps.tasks.segmentation.data.augment import Augmentation, change_intensity
from ics_apps.tasks.segmentation.data.cases import Case, Cases
from ics_apps.tasks.segmentation.data.grid import ANISOTROPY

_DRAWS: Final = 16


class PatchSampler(DistributedSampler[Any]):
    """Yields (epoch, index), so that a worker needs no state to know its patches.

    Over W processes, batch b holds the patches b*B*W ... (b+1)*B*W - 1, and process r the r-th B of them. It is a
    `DistributedSampler` so that Lightning, which replaces any other sampler, leaves it in place and calls `set_epoch`.

    Args:
        patches: Patches an epoch, rounded up to full batches on all processes.
        batch_size: B, patches a batch and process.
        num_replicas: W.
        rank: r.

    Example:
        >>> sampler = PatchSampler(3, batch_size=2)
        >>> sampler.set_epoch(5)
        >>> list(sampler)
        [(5, 0), (5, 1), (5, 2), (5, 3)]
    """

    def __init__(self, patches: int, batch_size: int, num_replicas: int = 1, rank: int = 0) -> None:
        # The parent only needs something with a length.
        super().__init__(range(patches), num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.batches = math.ceil(patches / (batch_size * num_replicas))

    def __iter__(self) -> Iterator[Any]:
        for batch in range(self.batches):
            start = (batch * self.num_replicas + self.rank) * self.batch_size
            yield from ((self.epoch, index) for index in range(start, start + self.batch_size))

    def __len__(self) -> int:
        return self.batches * self.batch_size


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Patches cut from whole cases on one grid for image (linear) and mask (nearest).

    A patch voxel at offset o from the patch centre, o_i in {-(p_i-1)/2 ... (p_i-1)/2}, is read at

        x = c + k diag(1/h) R F diag(h) o

    with centre c (uniform among those whose unturned patch lies in the case), scale k, rotation R, flips F and the
    spacing h, so that a turn is rigid in mm. Beyond its edge a case is mirrored, so that no empty corners arise.

    Of any n patches in a row, n times `foreground` (rounded up or down) hold foreground for certain: a class uniform
    among those that the case has, then a voxel uniform among its own. The patch is centred on it, moved as far as the
    unturned patch would leave the case and that voxel is not lost. A case without foreground gives a patch like any
    other.

    Args:
        cases: Training cases.
        patch_size: p, one number an axis of S.
        options: Ranges of the augmentation.
        seed: First part of each patch's seed.
        foreground: Share of the patches, 0 <= f <= 1.

    Reference: Isensee et al. 2021 (nnU-Net), where a third of the patches of a batch are drawn so.
    """

    def __init__(
        self, cases: Cases, patch_size: Sequence[int], options: Augmentation, seed: int = 0, foreground: float = 0.0
    ) -> None:
        self.cases = cases
        self.patch_size = tuple(int(p) for p in patch_size)
        self.options = options
        self.seed = seed
        self.foreground = foreground

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """One patch, {"image": float32 (C, *S), "mask": int64 (*S)}, of (epoch, index)."""
        batch = self.__getitems__([key])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """A whole batch, {"image": float32 (B, C, *S), "mask": int64 (B, *S) or (B, K, *S)}, of B (epoch, index)."""
        generators = [_generator(self.seed, *key) for key in keys]
        draws = [torch.rand(_DRAWS, generator=generator, dtype=torch.float64).tolist() for generator in generators]
        chosen = [int(u[0] * len(self.cases)) for u in draws]
        # Within a batch a case is read once, which matters when it is not in memory.
        arrays = {i: (self.cases.image(i), self.cases.mask(i)) for i in dict.fromkeys(chosen)}
        image = torch.empty((len(keys), len(arrays[chosen[0]][0]), *self.patch_size))
        labels = arrays[chosen[0]][1].shape[: -len(self.patch_size)]
        mask = torch.empty((len(keys), *labels, *self.patch_size), dtype=torch.uint8)
        for b, (i, u) in enumerate(zip(chosen, draws, strict=True)):
            case = self.cases[i]
            matrix = _matrix(case.spacing, self.options, u[4:11])
            centre = self._centre(i, keys[b][1], u[1:4], matrix)
            image[b], mask[b] = cut(case, *arrays[i], centre, matrix, self.patch_size)
            change_intensity(image[b], self.options, u[12:16], generators[b])
        return {"image": image, "mask": self.cases.target(mask.numpy())}

    def _centre(self, number: int, index: int, u: Sequence[float], matrix: NDArray[np.float64]) -> list[float]:
        case: Case = self.cases[number]
        classes = self.cases.voxels(number) if is_forced(index, self.foreground) else []
        if not classes:
            return [_centre(*sizes) for sizes in zip(case.shape, self.patch_size, u, strict=False)]
        where = classes[int(u[0] * len(classes))]
        voxel = np.unravel_index(int(where[int(u[1] * len(where))]), case.shape)
        return _centre_on([int(x) for x in voxel], case.shape, self.patch_size, matrix)


def is_forced(index: int, share: float) -> bool:
    """Whether the patch of this index is one of the share that holds foreground for certain.

    Example:
        >>> [is_forced(index, 1 / 3) for index in range(6)]
        [False, False, True, False, False, True]
    """
    # An even spread and no draw: each batch has its share.
    return math.floor((index + 1) * share + 1e-9) > math.floor(index * share + 1e-9)


def cut(
    case: Case,
    image: NDArray[Any],
    mask: NDArray[np.uint8],
    centre: Sequence[float],
    matrix: NDArray[np.float64],
    patch_size: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Read a patch at x = centre + matrix o from image and mask on one grid.

    Only the box that the patch lies in is read and converted, whatever the size of the case. Equals `grid_sample` of
    the whole case with `padding_mode="reflection", align_corners=False`.

    Args:
        case: Gives mean and std.
        image: (C, *S) as the file has it.
        mask: Class indices (*S), or labels (K, *S).
        centre: c, in voxels.
        matrix: k diag(1/h) R F diag(h), (D, D).
        patch_size: p.

    Returns:
        The normalized image patch, float32 (C, *p), and the mask patch, float32 or uint8 (*p) or (K, *p).
    """
    half = np.abs(matrix) @ ((np.asarray(patch_size) - 1) / 2)
    low = np.floor(centre - half).astype(int)
    high = np.ceil(centre + half).astype(int) + 1
    box = _box(low, high, image.shape[1:])
    source = torch.from_numpy(case.normalized(image[(slice(None), *box)]))
    # A copy, because an array mapped from disk cannot be written to.
    labels = np.array(mask[(..., *box)], order="C")
    if (matrix == np.eye(len(patch_size))).all():
        return source, torch.from_numpy(labels)
    sizes = high - low
    grid = _grid(matrix / sizes[:, None], (2 * (centre - low) + 1) / sizes - 1, patch_size)[None]
    values = torch.from_numpy(labels.astype(np.float32))
    if mask.ndim == image.ndim:
        return _sample(source, grid, "bilinear"), _sample(values, grid, "nearest")
    return _sample(source, grid, "bilinear"), _sample(values[None], grid, "nearest")[0]


def _sample(source: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(source[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]


def _grid(matrix: NDArray[np.float64], centre: NDArray[np.float64], patch_size: tuple[int, ...]) -> Tensor:
    """`centre + 2 matrix o` for each o, last axis first as `grid_sample` wants it: float32 (*p, D)."""
    axes = len(patch_size)
    grid = np.empty((*patch_size, axes), dtype=np.float32)
    for i in range(axes):
        total = np.asarray(centre[i], dtype=np.float32)
        for j, p in enumerate(patch_size):
            steps = (matrix[i, j] * (2 * np.arange(p) - (p - 1))).astype(np.float32)
            # Sums of short vectors: the full size is reached only by the last one.
            total = total[..., None] + steps if j else total + steps
        grid[..., axes - 1 - i] = total
    return torch.from_numpy(grid)


def _centre_on(
    voxel: Sequence[int], shape: Sequence[int], patch: Sequence[int], matrix: NDArray[np.float64]
) -> list[float]:
    """The centre of a patch of which one voxel is read exactly at a voxel of the case.

    It is, of those, the one nearest to a patch that lies in the case when unturned.
    """
    starts = [
        min(max(x - p // 2, 0), n - p) if n >= p else (n - p) // 2 for x, n, p in zip(voxel, shape, patch, strict=True)
    ]
    half = (np.asarray(patch) - 1) / 2
    offset = np.linalg.solve(matrix, np.asarray(voxel) - (starts + half))
    inside = np.clip(np.round(offset + half), 0, 2 * half) - half
    return [float(x) for x in voxel - matrix @ inside]


def _box(low: NDArray[np.int_], high: NDArray[np.int_], shape: Sequence[int]) -> tuple[Any, ...]:
    """Indices of the box low <= x < high: slices if it lies inside, else mirrored at the edges -1/2 and n - 1/2."""
    if (low >= 0).all() and (high <= shape).all():
        return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    indices = []
    for a, b, n in zip(low, high, shape, strict=True):
        index = np.arange(a, b) % (2 * n)
        indices.append(np.minimum(index, 2 * n - 1 - index))
    return np.ix_(*indices)


def _generator(seed: int, epoch: int, index: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def _centre(size: int, patch: int, u: float) -> float:
    # A whole-voxel start, so that a patch without turn and scale is an exact crop.
    room = size - patch
    start = int(u * (room + 1)) if room >= 0 else room // 2
    return start + (patch - 1) / 2


def _matrix(spacing: Sequence[float], options: Augmentation, u: Sequence[float]) -> NDArray[np.float64]:
    """Compute k diag(1/h) R F diag(h) from seven numbers in [0, 1): three angles, three flips, the scale."""
    low, high = options.scale
    matrix = (low + (high - low) * u[6]) * _rotation(spacing, options, u[:3])
    if options.flip:
        matrix *= np.where(np.asarray(u[3 : 3 + len(spacing)]) < 0.5, -1.0, 1.0)
    h = np.asarray(spacing, dtype=np.float64)
    return matrix * h[None, :] / h[:, None]


def _rotation(spacing: Sequence[float], options: Augmentation, u: Sequence[float]) -> NDArray[np.float64]:
    axes = len(spacing)
    planar = axes == 2 or max(spacing) > ANISOTROPY * min(spacing)
    largest = options.rotate if options.rotate is not None else (180.0 if planar else 30.0)
    fine_to_coarse = sorted(range(axes), key=lambda axis: spacing[axis])
    planes = [(fine_to_coarse[0], fine_to_coarse[1])] if planar else [(0, 1), (0, 2), (1, 2)]
    result = np.eye(axes)
    for (i, j), v in zip(planes, u, strict=False):
        angle = math.radians(largest) * (2 * v - 1)
        step = np.eye(axes)
        step[i, i] = step[j, j] = math.cos(angle)
        step[i, j], step[j, i] = -math.sin(angle), math.sin(angle)
        result = result @ step
    return result
