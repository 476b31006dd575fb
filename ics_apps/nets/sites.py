"""Which norm stands at which site of a net, and what that means for the convolution and activation beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ics_apps.nearest import did_you_mean
from ics_apps.norms import NormError, NormSpec, make_norm
from ics_apps.norms.layers.weight import attach_weight_norm
from ics_apps.norms.registry import NormEntry, parse_norm


@dataclass(frozen=True)
class Site:
    """One place of a net that takes a norm.

    Attributes:
        label: How error messages call it, as in "encoder level 0".
        spec: The norm chosen for it.
        dim: As in `make_norm`.
    """

    label: str
    spec: NormSpec
    dim: int

    def norm(self, channels: int, behind: nn.Module | None = None) -> nn.Module:
        """Build the norm.

        Args:
            channels: Size of the channel axis.
            behind: The layer directly before it, to which a norm that acts on weights is attached.

        Raises:
            NormError: It cannot be built, or acts on a weight where there is none; the message begins with the site.
        """
        try:
            norm = make_norm(self.spec, channels, self.dim)
            attach_weight_norm(behind, norm)
        except NormError as error:
            raise NormError(f"{self.label}: {error}") from error
        return norm

    @property
    def absorbs_bias(self) -> bool:
        """Whether a bias directly before the norm would be redundant."""
        entry, options = self._entry
        return entry is not None and entry.absorbs_bias and options.get("affine", True) is not False

    @property
    def contains_activation(self) -> bool:
        """Whether the norm is an activation as well."""
        entry, _ = self._entry
        return entry is not None and entry.contains_activation

    @property
    def _entry(self) -> tuple[NormEntry | None, dict[str, object]]:
        if callable(self.spec):
            return None, {}  # without promises
        try:
            return parse_norm(self.spec)
        except NormError as error:
            raise NormError(f"{self.label}: {error}") from error


def norms_by_site(default: NormSpec, given: Mapping[str, NormSpec], sites: Sequence[str]) -> dict[str, NormSpec]:
    """The norm of each site: the given one, else the default.

    Raises:
        NormError: A norm is given for a site that the net does not have.

    Example:
        >>> norms_by_site("batch", {"decoder": "none"}, ("encoder", "decoder"))
        {'encoder': 'batch', 'decoder': 'none'}
    """
    for site in given:
        if site not in sites:
            hint = did_you_mean(site, sites)
            raise NormError(f"unknown site {site!r} in site_norms{hint} Sites: {', '.join(sites)}")
    return {site: given.get(site, default) for site in sites}
