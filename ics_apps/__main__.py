"""`python -m ics_apps` is `ics-apps`."""

from __future__ import annotations

from ics_apps.cli import entry_point

entry_point()
