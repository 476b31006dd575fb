"""Networks as plain modules; each takes `norm=`. No Lightning, no losses."""

from ics_apps.nets.unet import UNet

__all__ = ["UNet"]
