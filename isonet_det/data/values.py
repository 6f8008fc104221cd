"""Values as exports write them, made what COCO's format wants, or None."""

from typing import Any

from pycocotools import mask as mask_util


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a sane size, and no bool."""
    return (type(value) is float or type(value) is int) and -1e9 < value < 1e9


def whole_number(value: Any) -> int | None:
    """The whole number in 3, 3.0 or "3"."""
    if type(value) is int:
        return value
    try:
        number = float(value) if isinstance(value, (str, float)) else 0.5
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def flag(value: Any) -> int | None:
    """0 or 1 from null, a bool, a number or its text."""
    number = int(value or 0) if value is None or isinstance(value, bool) else whole_number(value)
    return number if number in (0, 1) else None


def four_numbers(values: Any) -> list[float] | None:
    """A list of four numbers that may be written as text."""
    if not isinstance(values, list) or len(values) != 4:
        return None
    try:
        numbers = [float(v) if isinstance(v, str) else v for v in values]
    except ValueError:
        return None
    return numbers if all(map(is_number, numbers)) else None


def decode_counts(text: str) -> list[int] | None:
    """Run lengths of a compressed RLE (pycocotools' text form, which it decodes unchecked)."""
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("utf-8", "replace"):
        digit = code - 48
        if not 0 <= digit < 64:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:  # the last digit of a run, which has its sign
            value -= (1 << shift) if digit & 16 else 0
            # From the fourth run on, a run is written as its difference to the one before the last.
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return None if shift else runs


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
