"""What a COCO json says: its layout, and a look at every annotation."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ISONetError

EXAMPLES = 5
# Kind of finding: whether training fails on it. The others Detectron2 clips, skips or ignores.
KINDS = {
    "photo missing": True,
    "photo does not decode": True,
    "photo of another size than the json says": True,
    "duplicate image id": True,
    "duplicate annotation id": True,
    "annotation of an unknown image": True,
    "annotation of an unknown category": True,
    "box that is not [x, y, width, height]": True,
    "mask (RLE) of another size than its image": True,
    "mask that is neither polygons nor RLE": True,
    "box outside its image": False,
    "box without area": False,
    "polygon with fewer than three points": False,
    "image without annotations": False,
    "category without annotations": False,
}


@dataclass
class Findings:
    """Counts and first examples of each kind."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(example)

    @property
    def fatal(self) -> bool:
        """Whether training would fail."""
        return any(KINDS[kind] for kind in self.counts)

    def report(self) -> str:
        """One line a kind, and its first examples."""
        lines = []
        for kind, fatal in KINDS.items():
            if self.counts[kind]:
                lines.append(f"{'FAILS' if fatal else 'note '} {self.counts[kind]:7d} {kind}")
                lines += [f"              {example}" for example in self.examples[kind]]
        return "\n".join(lines) or "nothing found"


def _require(name: str, path: str, what: str, records: Any, keys: Iterable[str]) -> None:
    for i, record in enumerate(records):
        missing = (
            [key for key in keys if key not in record] if isinstance(record, dict) else list(keys)
        )
        if missing:
            raise ISONetError(
                f"data set {name}: {path} is not COCO's format: {what}[{i}] has no {missing[0]}"
            )


def check_coco_layout(name: str, path: str, content: Any) -> None:
    """Check that the parsed content of an annotation file has COCO's lists, and their records
    COCO's keys.

    Raises:
        ISONetError: it has not.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ISONetError(
                f'data set {name}: {path} is not COCO\'s format: no list "{key}" in it'
            )
    _require(name, path, "images", content["images"], ("id", "file_name", "height", "width"))
    _require(name, path, "categories", content["categories"], ("id", "name"))
    _require(
        name,
        path,
        "annotations",
        content["annotations"],
        ("id", "image_id", "category_id", "bbox"),
    )
    if not content["images"] or not content["categories"]:
        raise ISONetError(f"data set {name}: {path} has no images or no categories")
    for what in ("images", "categories", "annotations"):
        for record in content[what]:
            ids = [value for key, value in record.items() if key == "id" or key.endswith("_id")]
            if not all(isinstance(value, (int, str)) for value in ids):
                raise ISONetError(
                    f"data set {name}: {path} is not COCO's format: {what} have the ids {ids}, "
                    "not whole numbers"
                )
    for image in content["images"]:
        size = (image["height"], image["width"])
        if not isinstance(image["file_name"], str) or not all(
            isinstance(side, int) and side > 0 for side in size
        ):
            raise ISONetError(
                f"data set {name}: {path}: image {image['id']} has file_name "
                f"{image['file_name']!r} and height and width {size}"
            )


def _duplicates(records: list[dict]) -> list[Any]:
    return [i for i, n in Counter(record["id"] for record in records).items() if n > 1]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def examine_annotations(content: dict[str, Any], findings: Findings) -> None:
    """Examine the parsed content of a COCO json; what is found is added to ``findings``."""
    for identity in _duplicates(content["images"]):
        findings.add("duplicate image id", str(identity))
    for identity in _duplicates(content["annotations"]):
        findings.add("duplicate annotation id", str(identity))
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    seen_images, seen_categories = set(), set()
    for annotation in content["annotations"]:
        name = f"annotation {annotation['id']}"
        image = images.get(annotation["image_id"])
        if image is None:
            findings.add("annotation of an unknown image", f"{name}: {annotation['image_id']}")
            continue
        if annotation["category_id"] not in categories:
            where = f"{name}: {annotation['category_id']}"
            findings.add("annotation of an unknown category", where)
        seen_images.add(annotation["image_id"])
        seen_categories.add(annotation["category_id"])
        _examine_box(annotation["bbox"], image, name, findings)
        _examine_mask(annotation.get("segmentation"), image, name, findings)
    for identity in images.keys() - seen_images:
        findings.add("image without annotations", str(images[identity]["file_name"]))
    for category in content["categories"]:
        if category["id"] not in seen_categories:
            findings.add("category without annotations", str(category["name"]))


def _examine_box(box: Any, image: dict, name: str, findings: Findings) -> None:
    if not (isinstance(box, list) and len(box) == 4 and all(map(_number, box))):
        findings.add("box that is not [x, y, width, height]", f"{name}: {box}")
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        findings.add("box without area", f"{name}: {box}")
    # A pixel of rounding is common in COCO itself.
    if min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        size = f"{image['width']}x{image['height']}"
        findings.add("box outside its image", f"{name}: {box} in {size}")


def _examine_mask(mask: Any, image: dict, name: str, findings: Findings) -> None:
    if mask is None:
        return
    if isinstance(mask, dict):
        size = mask.get("size")
        if size != [image["height"], image["width"]]:
            wanted = [image["height"], image["width"]]
            findings.add("mask (RLE) of another size than its image", f"{name}: {size}, {wanted}")
    elif isinstance(mask, list) and all(
        isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(_number, polygon))
        for polygon in mask
    ):
        if any(len(polygon) < 6 for polygon in mask):
            findings.add("polygon with fewer than three points", name)
    else:
        findings.add("mask that is neither polygons nor RLE", name)
