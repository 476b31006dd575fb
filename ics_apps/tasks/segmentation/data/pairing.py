"""Which image file belongs to which mask file, by stem. No pixel is read here; the parts are in `splits`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ics_apps.tasks.segmentation.data.checks import Problems, nearest, some
from ics_apps.tasks.segmentation.data.formats import SUFFIXES, stem_of, suffix_of


@dataclass(frozen=True, slots=True)
class Pair:
    """One case on disk: its name (the image's stem) and its two files."""

    name: str
    image: Path
    mask: Path


def find_pairs(folder: Path, images: str, masks: str, problems: Problems) -> list[Pair]:
    """Pairs of files with one stem in `folder/images` and `folder/masks`, sorted by stem."""
    image_files = find_images(folder / images, problems)
    mask_files = find_images(folder / masks, problems)
    if image_files is None or mask_files is None:
        return []
    for stem in sorted(image_files.keys() - mask_files.keys()):
        problems.add(image_files[stem], _no_partner("mask", stem, folder / masks, mask_files))
    for stem in sorted(mask_files.keys() - image_files.keys()):
        problems.add(mask_files[stem], _no_partner("image", stem, folder / images, image_files))
    both = sorted(image_files.keys() & mask_files.keys())
    return [Pair(stem, image_files[stem], mask_files[stem]) for stem in both]


def find_images(folder: Path, problems: Problems) -> dict[str, Path] | None:
    """Stem -> file for each image file of a folder (not of its sub-folders); None if there is none."""
    if not folder.is_dir():
        problems.add(folder, missing_folder(folder))
        return None
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or suffix_of(path) is None or not path.is_file():
            continue
        stem = stem_of(path)
        if stem in found:
            problems.add(path, f"has the same stem as {found[stem].name}; keep one of the two")
            continue
        found[stem] = path
    if not found:
        names = sorted(path.name for path in folder.iterdir())
        held = f"it holds {some(names)}" if names else "it is empty"
        problems.add(folder, f"no image in this folder ({', '.join(SUFFIXES)}); {held}")
        return None
    return found


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
