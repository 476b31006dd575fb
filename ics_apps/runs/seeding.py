"""Make each epoch's randomness a function of (seed, epoch, rank), so that a resumed run equals an uninterrupted one.

A Lightning checkpoint holds no state of the random generators: a resumed run would shuffle as in its first epoch and
draw other dropout masks than the run that was not stopped.
"""

from __future__ import annotations

import random
from typing import Final

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

_PRIME: Final = 1_000_003
_SEED_RANGE: Final = 2**32


class SeedEveryEpoch(Callback):
    """Seed Python, numpy and torch at each epoch's start from (seed, epoch, rank).

    Args:
        seed: The run's seed.

    The data loader's iterator draws from the same generators. Lightning makes it before the epoch starts in the first
    epoch of a `fit` call and after that in all others; here it is made anew in the first one, so that the order of
    draws is the same whether or not an epoch is the first after a resume.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._first_epoch = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next epoch is the first of this call."""
        self._first_epoch = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed, and in the first epoch of a `fit` call make the loader's iterator again."""
        seed = epoch_seed(self.seed, trainer.current_epoch, trainer.global_rank)
        random.seed(seed)
        np.random.seed(seed)  # augmentation code of others draws from the global generator
        torch.manual_seed(seed)
        if self._first_epoch and trainer.fit_loop._data_fetcher is not None:
            iter(trainer.fit_loop._data_fetcher)
        self._first_epoch = False


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed in [0, 2^32) that differs between epochs and ranks.

    Example:
        >>> epoch_seed(0, 1) != epoch_seed(0, 2)
        True
    """
    return (seed * _PRIME * _PRIME + epoch * _PRIME + rank) % _SEED_RANGE
