"""Values as exports write them, made what COCO's format wants, or None."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_util


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a sane size, and no bool."""
    return (type(value) is float or type(value) is int) and -1e9 < value < 1e9


def whole_number(value: Any) -> int | None:
    """The whole number in 3, 3.0 or "3"."""
    if type(value) is int:
        return value
    try:
        number = float(value) if isinstance(value, (str, float)) else np.nan
        return int(number) if number.is_integer() else None  # type: ignore[union-attr]
    except (ValueError, AttributeError):
        return None


def regular_flag(value: Any) -> int | None:
    """0 or 1 from what exports write for it."""
    if isinstance(value, str):
        value = {"": 0, "false": 0, "no": 0, "true": 1, "yes": 1}.get(value.strip().lower(), value)
    if value is None or isinstance(value, bool):
        return int(bool(value))
    number = whole_number(value)
    return number if number in (0, 1) else None


def numbers_of(values: Any, length: int) -> list[float] | None:
    """A list of ``length`` numbers that may be written as text."""
    if not isinstance(values, list) or len(values) != length:
        return None
    try:
        numbers = [float(v) if isinstance(v, str) else v for v in values]
    except ValueError:
        return None
    return numbers if all(map(is_number, numbers)) else None


def decode_counts(text: str) -> list[int] | None:
    """Run lengths of a compressed RLE (pycocotools' text form, which it decodes unchecked)."""
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        return None
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # more than 35 bits
        return None
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    runs = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[ends] & 0x10) > 0
    runs -= negative * (np.int64(1) << (5 * (ends - starts + 1)))
    # From the fourth run on, a run is written as its difference to the one before the last.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs.tolist()


def is_polygon(points: Any) -> bool:
    """Whether it is a flat list of finite coordinates in pairs."""
    if type(points) is not list or len(points) % 2:
        return False
    try:
        # One pass in C: text, lists and None raise, NaN and infinity fail both comparisons, and
        # a coordinate that would take gigabytes to draw stands out of the mean.
        limit = 1e5 * (len(points) + 1)
        return -limit < sum(points) < limit
    except TypeError:
        return False


def as_rle(mask: list | dict, height: int, width: int) -> dict:
    """A regular mask, run-length encoded and compressed."""
    if isinstance(mask, dict) and not isinstance(mask["counts"], list):
        return mask
    encoded = mask_util.frPyObjects(mask, height, width)
    return encoded if isinstance(mask, dict) else mask_util.merge(encoded)
