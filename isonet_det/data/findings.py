"""What is found in a COCO json and its photos, by kind: counted, with examples."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partialmethod

EXAMPLES = 5
# Training fails on it; it was made regular; or it is as it is, and said.
FAILS, MADE, NOTE = "FAILS", "made ", "note "
AS_DISPLAYED = "photo that EXIF turns, annotated as displayed"
NOBODY_KNOWS = "photo that EXIF turns, annotated nobody knows how"


@dataclass
class Findings:
    """Level, count and first examples of each kind, in the order in which they were found."""

    levels: dict[str, str] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    objects: Counter = field(default_factory=Counter)  # annotations, of "usable" ones and others

    def add(self, level: str, kind: str, example: str, count: int = 1) -> None:
        self.levels[kind] = level
        self.counts[kind] += count
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(example)

    fails = partialmethod(add, FAILS)
    made = partialmethod(add, MADE)
    note = partialmethod(add, NOTE)

    def kinds(self, level: str) -> list[str]:
        return [k for k, found in self.levels.items() if found == level and self.counts[k]]

    def settle_orientations(self) -> None:
        """Photos that EXIF turns and that keep their size are as the others of the set are."""
        if self.counts[AS_DISPLAYED] and self.counts[NOBODY_KNOWS]:
            self.counts[AS_DISPLAYED] += self.counts.pop(NOBODY_KNOWS)

    @property
    def fatal(self) -> str:
        """One line about the first kind that training would fail on; "" if there is none."""
        for kind in self.kinds(FAILS)[:1]:
            line = f"{kind}: {self.examples[kind][0]} ({self.counts[kind]} such; "
            return " ".join(f"{line}isonet-det check lists more)".split())
        return ""

    def changes(self) -> list[str]:
        """One line a kind of what was made regular, and of boxes that are clipped or skipped."""
        kinds = [*self.kinds(MADE), *(k for k in self.kinds(NOTE) if k.startswith("box"))]
        return [f"{kind}: {self.counts[kind]}, first {self.examples[kind][0]}" for kind in kinds]

    def report(self) -> str:
        """One line a kind, and its first examples; at last whether training would fail."""
        lines = []
        for level in (FAILS, MADE, NOTE):
            for kind in self.kinds(level):
                lines.append(f"{level} {self.counts[kind]:7d} {kind}")
                lines += [f"              {example}" for example in self.examples[kind]]
        verdict = f"not good: training fails on the lines marked {FAILS}" if self.fatal else "good"
        return "\n".join([*lines, verdict])
