"""Kinds of what is found in a COCO json and its photos, counted with examples."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

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
    "polygon with fewer than three points left out": MADE,
    "numbers of a mask (RLE) made whole": MADE,
    "keypoints that are no triples left out": MADE,
    "keypoints counted": MADE,
    "classes missing": MADE,
    "classes in another order": MADE,
    "instance without valid segmentation (polygons of fewer than three points) left out": MADE,
    "photo that EXIF turns, annotated as displayed": NOTE,
    "boxes that may be [x1, y1, x2, y2]": NOTE,
    "box outside its image": NOTE,
    "box without area": NOTE,
    "instance without a mask": NOTE,
    "instance with a run-length encoded mask": NOTE,
    "image without annotations": NOTE,
    "category without annotations": NOTE,
}
MADE_KINDS = [kind for kind, level in KINDS.items() if level == MADE]
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
    """Counts and first examples of each kind.

    Attributes:
        objects: how many annotations there are: "all", "crowd", "usable" (no crowd, with an area),
            and "keypoints N" with N keypoints.
    """

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    objects: Counter = field(default_factory=Counter)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self.counts[kind] += count
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(example)

    def settle_orientations(self) -> None:
        """Photos that EXIF turns by half or mirrors keep their size, so that it does not tell
        whether they were annotated as displayed; others of the set that did tell speak for them."""
        told, unknown = (
            f"photo that EXIF turns, annotated {how}"
            for how in ("as displayed", "nobody knows how")
        )
        if self.counts[told] and self.counts[unknown]:
            self.add(told, self.examples[unknown][0], self.counts.pop(unknown))

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
            if self.counts[kind] and (level == MADE or kind.startswith("box"))
        ]

    def report(self) -> str:
        """One line a kind, and its first examples."""
        lines = []
        for kind, level in KINDS.items():
            if self.counts[kind]:
                lines.append(f"{level} {self.counts[kind]:7d} {kind}")
                lines += [f"              {example}" for example in self.examples[kind]]
        return "\n".join(lines) or "nothing found"
