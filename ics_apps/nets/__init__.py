"""Networks as plain modules; each takes `norm=`. No Lightning, no losses."""

from ics_apps.nets.adapted import AdaptedNet
from ics_apps.nets.timm_unet import TimmUNet
from ics_apps.nets.unet import UNet

__all__ = ["AdaptedNet", "TimmUNet", "UNet"]
