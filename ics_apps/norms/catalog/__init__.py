"""The builders that give each norm its name, options, promises and page of text; importing them registers them."""

from ics_apps.norms.catalog import batch, batch_like, conditional, elementwise, local, mixed, position, sample, weight

__all__ = ["batch", "batch_like", "conditional", "elementwise", "local", "mixed", "position", "sample", "weight"]
