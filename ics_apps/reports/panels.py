"""Reads the image panels of a run and orders the cases, worst first; the pictures are embedded as they are stored."""

from __future__ import annotations

import base64
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ics_apps.reports.wording import higher_is_better
from ics_apps.runs import layout

MAX_PICTURE_BYTES: Final = 4 * 2**20

_PNG: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """One picture of a case: its title and file, or the reason why it cannot be shown."""

    title: str
    path: Path
    reason: str = ""


@dataclass(frozen=True)
class PanelCase:
    """One case: its scores, in the order of the index, and its pictures."""

    case: str
    stage: str
    scores: dict[str, float]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture as text that goes into a page: `data` is a data URL, "" where `reason` says why there is none."""

    title: str
    data: str
    width: int
    height: int
    reason: str


def read_panels(folder: Path, problems: list[str]) -> tuple[PanelCase, ...]:
    """Read `panels/index.json`.

    Args:
        folder: The panels folder; it may be missing.
        problems: Sentences about what could not be read are appended here.

    Returns:
        Cases ordered by their first score, worst first; cases without a finite score come last.
    """
    index = folder / layout.PANELS_INDEX
    if not index.is_file():
        return ()
    try:
        entries = json.loads(index.read_bytes().decode("utf-8", errors="replace"))
    except (ValueError, OSError, RecursionError) as error:
        problems.append(f"{folder.name}/{index.name} could not be read ({error}); the panels are left out.")
        return ()
    if not isinstance(entries, list):
        problems.append(f"{folder.name}/{index.name} is not a list of cases; the panels are left out.")
        return ()
    cases = [_case(folder, entry) for entry in entries if isinstance(entry, dict)]
    return tuple(sorted(cases, key=_badness))


def embed(picture: Picture) -> EmbeddedPicture:
    """Turn a stored PNG into a data URL.

    Args:
        picture: A picture of a case.

    Returns:
        The picture, or the reason why it cannot be shown: the file is missing, is no PNG, or is larger than 4 MiB.
    """
    if picture.reason:
        return EmbeddedPicture(picture.title, "", 0, 0, picture.reason)
    try:
        if picture.path.stat().st_size > MAX_PICTURE_BYTES:
            return EmbeddedPicture(picture.title, "", 0, 0, f"{picture.path.name} is larger than 4 MiB")
        content = picture.path.read_bytes()
    except OSError:
        return EmbeddedPicture(picture.title, "", 0, 0, f"{picture.path.name} is missing")
    if not content.startswith(_PNG) or len(content) < 24:
        return EmbeddedPicture(picture.title, "", 0, 0, f"{picture.path.name} is not a PNG file")
    width, height = struct.unpack(">II", content[16:24])
    data = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    return EmbeddedPicture(picture.title, data, width, height, "")


def _case(folder: Path, entry: dict[str, Any]) -> PanelCase:
    scores = entry.get("scores")
    images = entry.get("images")
    return PanelCase(
        case=str(entry.get("case", "?")),
        stage=str(entry.get("stage", "")),
        scores={
            str(name): float(value)
            for name, value in (scores.items() if isinstance(scores, dict) else ())
            if isinstance(value, int | float)
        },
        pictures=tuple(
            _picture(folder, image) for image in (images if isinstance(images, list) else ()) if isinstance(image, dict)
        ),
    )


def _picture(folder: Path, image: dict[str, Any]) -> Picture:
    title, file = str(image.get("title", "")), str(image.get("file", ""))
    # An index may come from elsewhere: a name with `..` would put any file of this machine on the page.
    path = folder / file if file and "\0" not in file else folder
    if path == folder or not path.resolve().is_relative_to(folder.resolve()):
        return Picture(title, folder, f"`{file}` is not a file of the panels folder")
    return Picture(title, path)


def _badness(case: PanelCase) -> tuple[bool, float]:
    if not case.scores:
        return True, 0.0
    name, value = next(iter(case.scores.items()))
    if not math.isfinite(value):
        return True, 0.0
    return False, -value if higher_is_better(name) is False else value
