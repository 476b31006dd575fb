"""Data for segmentation: folders of images and masks, and a generator that needs no download."""

from ics_apps.tasks.segmentation.data.checks import DataError
from ics_apps.tasks.segmentation.data.folder import ImageMaskFolderData
from ics_apps.tasks.segmentation.data.loaders import SegmentationData
from ics_apps.tasks.segmentation.data.phantom import PhantomData

__all__ = ["DataError", "ImageMaskFolderData", "PhantomData", "SegmentationData"]
