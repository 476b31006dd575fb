"""The command `ics-apps`. Verbs that only look things up start in well under half a second, without torch."""

from __future__ import annotations

from ics_apps.cli.entry import entry_point, main

__all__ = ["entry_point", "main"]
