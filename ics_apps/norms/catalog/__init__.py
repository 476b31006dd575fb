"""The builders that give each norm its name, options, promises and page of text; importing them registers them."""

from ics_apps.norms.catalog import batch, elementwise, mixed, sample

__all__ = ["batch", "elementwise", "mixed", "sample"]
