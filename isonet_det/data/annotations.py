"""Kinds of what is found in a COCO json, and the regular form of its values."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from ..errors import ISONetError

EXAMPLES = 5
FAILS, MADE, NOTE = "FAILS", "made ", "note "
# Kind of finding: training fails on it; it was made regular; or it is as it is, and said.
KINDS = {
    "photo missing": FAILS,
    "photo does not decode": FAILS,
    "photo of another size than the json says": FAILS,
    "photo that EXIF turns, annotated as stored": FAILS,
    "photo that EXIF turns, annotated nobody knows how": FAILS,
    "photo of 16 bits a channel": FAILS,
    "file name that is no path here": FAILS,
    "image without a usable height and width": FAILS,
    "duplicate image id": FAILS,
    "duplicate category id": FAILS,
    "duplicate annotation id": FAILS,
    "annotation of an unknown image": FAILS,
    "annotation of an unknown category": FAILS,
    "box that is not [x, y, width, height]": FAILS,
    "boxes that seem to be [x1, y1, x2, y2]": FAILS,
    "boxes that seem to be fractions of the image": FAILS,
    "iscrowd that is neither 0 nor 1": FAILS,
    "mask (RLE) of another size than its image": FAILS,
    "mask (RLE) whose counts do not fill its image": FAILS,
    "mask that is neither polygons nor RLE": FAILS,
    "image ids renumbered": MADE,
    "category ids renumbered": MADE,
    "annotation ids renumbered": MADE,
    "id written in another way than its image's or category's": MADE,
    "category without a name of its own": MADE,
    "height and width made whole numbers": MADE,
    "iscrowd made 0 or 1": MADE,
    "ignore read as iscrowd": MADE,
    "area computed": MADE,
    "box of text made numbers": MADE,
    "flat polygon put into a list": MADE,
    "keypoints that are no triples left out": MADE,
    "instance without valid segmentation (polygons of fewer than three points) left out": MADE,
    "photo that EXIF turns, annotated as displayed": NOTE,
    "box outside its image": NOTE,
    "box without area": NOTE,
    "polygon with fewer than three points": NOTE,
    "instance without a mask": NOTE,
    "instance with a run-length encoded mask": NOTE,
    "image without annotations": NOTE,
    "category without annotations": NOTE,
}
WHAT_TO_DO = {
    "photo that EXIF turns, annotated nobody knows how": "turn the pixels of such photos (mogrify "
    "-auto-orient) if they were annotated as displayed, or take the tag out (exiftool "
    "-Orientation=) if as stored",
    "boxes that seem to be [x1, y1, x2, y2]": "write [x1, y1, x2 - x1, y2 - y1]",
    "boxes that seem to be fractions of the image": "multiply x and width by the image's width, y "
    "and height by its height, in polygons too",
    "duplicate annotation id": "number them anew",
}


@dataclass
class Findings:
    """Counts and first examples of each kind."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self.counts[kind] += count
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(example)

    @property
    def fatal(self) -> bool:
        """Whether training would fail."""
        return bool(self.first_fatal())

    def first_fatal(self) -> str:
        """One line about the first kind that training would fail on; "" if there is none."""
        for kind, level in KINDS.items():
            if level == FAILS and self.counts[kind]:
                advice = f"; {WHAT_TO_DO[kind]}" if kind in WHAT_TO_DO else ""
                line = (
                    f"{kind}: {self.examples[kind][0]} ({self.counts[kind]} such; "
                    f"tools/check_dataset.py lists more){advice}"
                )
                return " ".join(line.split())
        return ""

    def changes(self) -> list[str]:
        """One line a kind of what was made regular, and of boxes that are clipped or skipped."""
        return [
            f"{kind}: {self.counts[kind]}, first {self.examples[kind][0]}"
            for kind, level in KINDS.items()
            if self.counts[kind] and (level == MADE or kind.startswith("box "))
        ]

    def report(self) -> str:
        """One line a kind, and its first examples."""
        lines = []
        for kind, level in KINDS.items():
            if self.counts[kind]:
                lines.append(f"{level} {self.counts[kind]:7d} {kind}")
                lines += [f"              {example}" for example in self.examples[kind]]
        return "\n".join(lines) or "nothing found"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a sane size, and no bool."""
    return (type(value) is float or type(value) is int) and -1e9 < value < 1e9


def whole_number(value: Any) -> int | None:
    """The whole number in 3, 3.0 or "3"; None where there is none."""
    if type(value) is int:
        return value
    try:
        number = float(value) if isinstance(value, (str, float)) else np.nan
        return int(number) if number.is_integer() else None  # type: ignore[union-attr]
    except (ValueError, AttributeError):
        return None


def regular_flag(value: Any) -> int | None:
    """0 or 1 from what exports write for it; None where it is neither."""
    if isinstance(value, str):
        value = {"": 0, "false": 0, "no": 0, "true": 1, "yes": 1}.get(value.strip().lower(), value)
    if value is None or isinstance(value, bool):
        return int(bool(value))
    number = whole_number(value)
    return number if number in (0, 1) else None


def numbers_of(values: Any, length: int) -> list[float] | None:
    """A list of ``length`` numbers that may be written as text; None where it is none."""
    if not isinstance(values, list) or len(values) != length:
        return None
    try:
        numbers = [float(v) if isinstance(v, str) else v for v in values]
    except ValueError:
        return None
    return numbers if all(map(is_number, numbers)) else None


def decode_counts(text: str) -> list[int] | None:
    """Run lengths of a compressed RLE (pycocotools' text form, which it decodes unchecked); None
    where the text is none."""
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


def regular_rle(mask: dict, height: int, width: int) -> tuple[dict | None, str, str]:
    """A run-length-encoded mask, compressed.

    Args:
        mask: with "size" and "counts", a list or pycocotools' text.
        height, width: of the image.

    Returns:
        the mask, None where it is none; then the kind of finding and what was found.
    """
    size = mask.get("size")
    numbers = [whole_number(v) for v in size] if isinstance(size, list) else size
    if numbers != [height, width]:
        return None, "mask (RLE) of another size than its image", f"{size}, {[height, width]}"
    counts = mask.get("counts")
    kind = "mask (RLE) whose counts do not fill its image"
    if isinstance(counts, list):
        runs: list | None = [c if type(c) is int else whole_number(c) for c in counts]
    else:
        runs = decode_counts(counts) if isinstance(counts, str) else None
    if runs is None or any(r is None or r < 0 for r in runs):
        return None, kind, f"counts are no run lengths: {str(counts)[:40]}"
    if sum(runs) != height * width:
        return None, kind, f"they sum to {sum(runs)}, the image has {height * width} pixels"
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode()}, "", ""
    rle = mask_util.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return rle, "", ""


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
    """A regular mask, run-length encoded."""
    if isinstance(mask, dict):
        return mask
    return mask_util.merge(mask_util.frPyObjects(mask, height, width))


def require(where: str, what: str, records: Any, keys: Iterable[str]) -> None:
    """Check that a list's records are dicts with some keys.

    Raises:
        ISONetError: one is not; with ``where`` in front.
    """
    for i, record in enumerate(records):
        absent = [k for k in keys if k not in record] if isinstance(record, dict) else list(keys)
        if absent:
            raise ISONetError(f"{where} is not COCO's format: {what}[{i}] has no {absent[0]}")
