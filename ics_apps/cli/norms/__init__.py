"""`ics-apps norms`: the registry as a table, and one norm in full with its cost on this machine."""

from ics_apps.cli.norms.verb import norms_verb

__all__ = ["norms_verb"]
