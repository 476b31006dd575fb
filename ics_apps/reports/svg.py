"""Makes a matplotlib figure an inline SVG that can stand beside others in one HTML page.

Figures are built with the object interface alone: no pyplot, no backend is chosen, and the settings are put back.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart under the common forms of colour blindness.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
INK: Final = "#1f2933"
SOFT: Final = "#66727f"

_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # text stays text: searched, read aloud, and in the page's own font
    "font.family": ["DejaVu Sans"],  # the widest of the usual fonts: what fits in it fits in the page's
    "font.size": 8.0,
    "axes.edgecolor": "#b8c1cb",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "text.color": INK,
    "legend.frameon": False,
    "path.simplify": True,
}
_NUMBER: Final = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE: Final = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        svg: Inline SVG, its text escaped.
        caption: What is drawn, with units.
        wide: True for the full width of the page, False for half.
        fold: Title under which the figure is folded away; "" for one that is shown.
    """

    svg: str
    caption: str
    wide: bool = True
    fold: str = ""


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Set the page's figure style, and put the caller's settings back afterwards."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcParams.update(cast("Any", _STYLE))
        # A layer may be named in any script; the browser has the glyph that the measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """Draw a figure as SVG that can be put into an HTML page.

    Args:
        figure: The figure; call within `figure_style()`.
        name: Prefix of every id inside, unique on the page.
        alt: Text for those who cannot see it.

    Returns:
        An `<svg>` element without prolog, metadata, namespaces or size: the page's style sheet sets its width.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)  # `$` in a layer name is no formula
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - the text comes from matplotlib two lines above
    _clean(root, f"{name}-")
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return ET.tostring(root, encoding="unicode")


def log_ticks(low: float, high: float) -> list[float]:
    """Choose round ticks of a log axis, as dense as there is room for.

    Args:
        low: Lower end, > 0.
        high: Upper end, >= `low`.

    Returns:
        Two to seven ticks within [low, high] where there are that many, else also the ends themselves.

    Example:
        >>> log_ticks(0.08, 3.0)
        [0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0]
    """
    import math

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1,)):
        ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 7:
            break
    ticks = ticks[:: 1 + (len(ticks) - 1) // 7]
    return ticks if len(ticks) > 1 else sorted({float(f"{low:.2g}"), *ticks, float(f"{high:.2g}")})


def _clean(element: ET.Element, prefix: str) -> None:
    element.tag = _local(element.tag)
    attributes = {_local(key): value for key, value in element.attrib.items()}
    for key, value in attributes.items():
        if key == "id":
            attributes[key] = prefix + value
        elif key == "href" and value.startswith("#"):
            attributes[key] = f"#{prefix}{value[1:]}"
        elif key in ("clip-path", "style", "fill", "stroke"):
            attributes[key] = _REFERENCE.sub(rf"url(#{prefix}\1)", value)
        elif key == "d":
            attributes[key] = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value).replace("\n", "")
    element.attrib = attributes
    for child in list(element):
        # matplotlib's own style element would apply to the whole page.
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _clean(child, prefix)
    if element.tag != "text" and element.text is not None and not element.text.strip():
        element.text = None
    if element.tail is not None and not element.tail.strip():
        element.tail = None


def _local(name: str) -> str:
    return name.rpartition("}")[2]
