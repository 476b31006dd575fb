"""ics-apps: choose, watch and measure normalization in PyTorch Lightning projects."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
