"""Several nets as one: members from checkpoints, their mean, and how uncertain it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ics_apps.runs.layout import BEST_CHECKPOINT, CHECKPOINTS


def load_member(net: nn.Module, path: str | Path) -> nn.Module:
    """A copy of `net` with the weights of a segmentation checkpoint.

    Args:
        net: The net whose architecture the checkpoint must have.
        path: A checkpoint, or a run directory, of which the best one is taken.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The checkpoint is of another net.
    """
    file = Path(path)
    file = file / CHECKPOINTS / BEST_CHECKPOINT if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint {file}; inference.members takes checkpoints and run folders")
    state = torch.load(file, map_location="cpu", weights_only=True).get("state_dict", {})
    own = {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")}
    member = copy.deepcopy(net)
    try:
        member.load_state_dict(own)
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{file} is of another net than this run's, so they cannot be averaged: {cause}") from error
    return member.eval()


def entropy(probabilities: Tensor, *, multi_label: bool = False) -> Tensor:
    r"""How uncertain a prediction is at each position, in nats.

    .. math:: H(p) = -\sum_k p_k \ln p_k

    in [0, ln K]; for labels that exclude none another, the sum over labels of their binary entropies, in [0, K ln 2].

    Args:
        probabilities: (B, K, \*S).
        multi_label: Each channel is a label of its own.

    Returns:
        (B, \*S).

    Example:
        >>> entropy(torch.tensor([[[0.5, 1.0], [0.5, 0.0]]]))
        tensor([[0.6931, 0.0000]])

    Reference: Shannon 1948.
    """
    parts: Tensor = torch.special.entr(probabilities)
    if multi_label:
        parts = parts + torch.special.entr(1 - probabilities)
    return parts.sum(1)


def mutual_information(members: Sequence[Tensor], *, multi_label: bool = False) -> Tensor:
    r"""How far members disagree at each position, in nats.

    .. math:: I = H\Big(\frac{1}{M} \sum_m p_m\Big) - \frac{1}{M} \sum_m H(p_m)

    0 where all members say the same, however unsure each is; at most ln M.

    Args:
        members: Probabilities (B, K, \*S) of each member.
        multi_label: As for `entropy`.

    Returns:
        (B, \*S), not below 0.

    Example:
        >>> sure, opposite = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]])
        >>> mutual_information([sure, opposite])  # ln 2
        tensor([[0.6931]])

    Reference: Houlsby 2011 (1112.5745), equation 2.
    """
    mean = torch.stack(list(members)).mean(0)
    own = torch.stack([entropy(p, multi_label=multi_label) for p in members]).mean(0)
    return (entropy(mean, multi_label=multi_label) - own).clamp_min(0)
