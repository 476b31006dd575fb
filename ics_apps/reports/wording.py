"""How numbers, shares, durations and long names are spelt on the page, and which way a metric is better.

No file is read and nothing is drawn here.
"""

from __future__ import annotations

import math
import re
from typing import Final

STAGES: Final = ("train", "val", "test", "predict")

_HIGHER: Final = (
    "dice",
    "iou",
    "jaccard",
    "f1",
    "acc",
    "accuracy",
    "auroc",
    "auc",
    "precision",
    "recall",
    "r2",
    "psnr",
    "ssim",
    "ari",
    "nmi",
    "elbo",
    "inception",
)
_LOWER: Final = (
    "loss",
    "hd95",
    "hausdorff",
    "assd",
    "mse",
    "mae",
    "rmse",
    "nll",
    "ce",
    "error",
    "perplexity",
    "fid",
    "kid",
    "ece",
    "brier",
    "residual",
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def number(value: float) -> str:
    """Spell a measured number with three significant digits.

    Args:
        value: Any float.

    Returns:
        Text without an exponent between 0.001 and 1e6.

    Example:
        >>> number(0.8), number(380.0), number(12345.6), number(0.00012), number(float("nan"))
        ('0.800', '380', '12346', '1.20e-4', 'not a number')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    size = abs(value)
    if size == 0:
        return "0"
    if 1e-3 <= size < 999.5:
        return f"{value:#.3g}".rstrip(".")
    if 999.5 <= size < 1e6:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def tick(value: float) -> str:
    """Spell an axis tick: short, and without an exponent where a reader needs none.

    Example:
        >>> tick(0.05), tick(10.0), tick(2e-7)
        ('0.05', '10', '2e-7')
    """
    text = f"{value:.6g}"
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].replace("+", ""), text)


def percent(share: float) -> str:
    """Spell a share in [0, 1] as a percentage.

    Example:
        >>> percent(0.314), percent(0.0004), percent(0.0)
        ('31 %', '0.04 %', '0 %')
    """
    if not math.isfinite(share):
        return number(share)
    value = 100 * share
    return f"{value:.0f} %" if value == 0 or value >= 10 else f"{value:.2g} %"


def count(many: int, noun: str) -> str:
    """Spell how many of a thing there are.

    Example:
        >>> count(1, "alarm"), count(3, "layer")
        ('1 alarm', '3 layers')
    """
    return f"{many} {noun}" if many == 1 else f"{many} {noun}s"


def duration(seconds: float) -> str:
    """Spell a time.

    Args:
        seconds: Seconds, >= 0.

    Example:
        >>> duration(7.25), duration(61), duration(7322)
        ('7.2 s', '1 min 1 s', '2 h 2 min')
    """
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def shorten(name: str, width: int = 38, head: int | None = None) -> str:
    """Cut a long name in its middle.

    Args:
        name: The name; characters that cannot be shown are replaced.
        width: Characters that are left, >= 3.
        head: Characters kept before the cut; a third where it is None, because layer names differ most at their end.

    Returns:
        At most `width` characters.

    Example:
        >>> shorten("decoder.0.norm"), shorten("encoder.blocks.11.attention.output.norm", 20)
        ('decoder.0.norm', 'encode…n.output.norm')
    """
    name = printable(name)
    if len(name) <= width:
        return name
    head = (width - 1) // 3 if head is None else head
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def printable(text: str) -> str:
    """Replace characters that no XML document may hold (control characters, lone surrogates)."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def split_stage(name: str) -> tuple[str, str]:
    """Split a logged name into stage and metric.

    Example:
        >>> split_stage("val/dice/membrane"), split_stage("lr")
        (('val', 'dice/membrane'), ('', 'lr'))
    """
    stage, slash, metric = name.partition("/")
    return (stage, metric) if slash and stage in STAGES else ("", name)


def higher_is_better(name: str) -> bool | None:
    """Say which way a metric is better by its name; None where the name is not known.

    Example:
        >>> higher_is_better("val/dice/membrane"), higher_is_better("val/loss"), higher_is_better("lr")
        (True, False, None)
    """
    words = re.split(r"[/_.\-]", split_stage(name)[1].lower())
    if any(word in _LOWER for word in words):
        return False
    return True if any(word in _HIGHER for word in words) else None
