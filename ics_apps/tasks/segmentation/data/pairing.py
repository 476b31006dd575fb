"""Which image file belongs to which mask file, by stem. No pixel is read here; the parts are in `splits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ics_apps.tasks.segmentation.data.checks import Problems, nearest, some
from ics_apps.tasks.segmentation.data.dicom import DICOM_SUFFIXES, is_series
from ics_apps.tasks.segmentation.data.formats import SUFFIXES, stem_of, suffix_of


@dataclass(frozen=True, slots=True)
class Pair:
    """One case on disk.

    Args:
        name: The image's stem.
        image: Its image; that of the first channel if each channel has a file.
        mask: Its mask; that of the first label if each label has a file.
        more_images: The files of the further channels.
        more_masks: The masks of the further labels.
        subject: Whom the case is of, where a table says so.
    """

    name: str
    image: Path
    mask: Path
    more_images: tuple[Path, ...] = ()
    more_masks: tuple[Path, ...] = ()
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Names of the folders and, where a case has several files, how these are told apart.

    Args:
        images: The folder of images.
        masks: The folder of masks, or one folder a label.
        channel_files: Ends of the stems of one case's images, one a channel; empty: a case has one image.
    """

    images: str = "images"
    masks: tuple[str, ...] = ("masks",)
    channel_files: tuple[str, ...] = ()


def find_pairs(folder: Path, layout: Layout, problems: Problems) -> list[Pair]:
    """Cases whose images and masks below `folder` have one stem, sorted by stem."""
    image_files = find_images(folder / layout.images, problems, layout.channel_files)
    mask_files = [find_images(folder / name, problems) for name in layout.masks]
    if image_files is None or any(files is None for files in mask_files):
        return []
    masks = [{stem: paths[0] for stem, paths in (files or {}).items()} for files in mask_files]
    both = set(image_files)
    for name, files in zip(layout.masks, masks, strict=True):
        for stem in sorted(image_files.keys() - files.keys()):
            problems.add(image_files[stem][0], _no_partner("mask", stem, folder / name, files))
        firsts = {stem: paths[0] for stem, paths in image_files.items()}
        for stem in sorted(files.keys() - image_files.keys()):
            problems.add(files[stem], _no_partner("image", stem, folder / layout.images, firsts))
        both &= set(files)
    return [
        Pair(stem, image_files[stem][0], masks[0][stem], image_files[stem][1:], tuple(m[stem] for m in masks[1:]))
        for stem in sorted(both)
    ]


def find_images(
    folder: Path, problems: Problems, channel_files: Sequence[str] = ()
) -> dict[str, tuple[Path, ...]] | None:
    """Stem -> files for each case of a folder, not of its sub-folders; None if there is none.

    A sub-folder of DICOM slices is one image, and so is `folder` if it holds such slices itself.

    Args:
        folder: Where to look.
        problems: Where faults go.
        channel_files: As in `Layout`.
    """
    if not folder.is_dir():
        problems.add(folder, missing_folder(folder))
        return None
    found: dict[str, Path] = {}
    for path in [folder] if is_series(folder) else sorted(folder.iterdir()):
        if path.name.startswith(".") or not (is_series(path) or (suffix_of(path) is not None and path.is_file())):
            continue
        stem = path.name if path.is_dir() else stem_of(path)
        if stem in found:
            problems.add(path, f"has the same stem as {found[stem].name}; keep one of the two")
            continue
        found[stem] = path
    if not found:
        names = sorted(path.name for path in folder.iterdir())
        held = f"it holds {some(names)}" if names else "it is empty"
        known = ", ".join((*SUFFIXES, *DICOM_SUFFIXES[:1]))
        problems.add(folder, f"no image in this folder ({known}); {held}")
        return None
    if channel_files:
        return _join_channels(found, channel_files, problems) or None
    return {stem: (path,) for stem, path in found.items()}


def _join_channels(
    found: dict[str, Path], channel_files: Sequence[str], problems: Problems
) -> dict[str, tuple[Path, ...]]:
    """The files of one case together, in the order of `channel_files`; what is missing or left over is a fault."""
    cases: dict[str, dict[str, Path]] = {}
    for stem, path in found.items():
        end = next((end for end in channel_files if stem.endswith(end) and len(stem) > len(end)), None)
        if end is None:
            problems.add(path, f"its stem ends with none of {', '.join(channel_files)} (channel_files)")
            continue
        cases.setdefault(stem.removesuffix(end), {})[end] = path
    joined = {}
    for stem, files in cases.items():
        missing = [end for end in channel_files if end not in files]
        if missing:
            problems.add(
                next(iter(files.values())), f"the case has no channel {', '.join(stem + end for end in missing)}"
            )
            continue
        joined[stem] = tuple(files[end] for end in channel_files)
    return joined


def _no_partner(kind: str, stem: str, folder: Path, there: dict[str, Path]) -> str:
    # `cell_1_mask` is what people mean by the mask of `cell_1`, more than any name of like letters.
    longer = [other for other in there if other.startswith(stem) and not other[len(stem) : len(stem) + 1].isalnum()]
    close = min(longer, key=len) if longer else nearest(stem, list(there))
    if close is None:
        return f"no {kind} with the stem {stem!r} in {folder.name}/"
    same = ", which differs only in case" if close.lower() == stem.lower() else ""
    return f"no {kind} with the stem {stem!r} in {folder.name}/; nearest is {there[close].name}{same}"


def missing_folder(folder: Path) -> str:
    """Say that a folder is missing, what is there instead, and which name is nearest."""
    if folder.exists():
        return "is a file; allowed is a folder"
    if not folder.parent.is_dir():
        return f"no such folder, and {folder.parent} is missing too"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.parent.iterdir())
    close = nearest(folder.name, [name[:-1] for name in names if name.endswith("/")])
    hint = f" (did you mean {close}/?)" if close else ""
    return f"no such folder; {folder.parent.name}/ {f'holds {some(names)}' if names else 'is empty'}{hint}"
