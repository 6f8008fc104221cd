"""A COCO json as found in the wild, made regular: one record an image, in Detectron2's form."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from ..errors import ISONetError
from .annotations import (
    Findings,
    as_rle,
    is_number,
    is_polygon,
    numbers_of,
    regular_flag,
    regular_rle,
    require,
    whole_number,
)

MAX_ID = 2**63


@dataclass
class Regular:
    """The regular form of a COCO json.

    Attributes:
        records: per image "file_name", "height", "width", "image_id" (a whole number), and
            "annotations" with "bbox", "bbox_mode", "category_id" (place in ``classes``),
            "iscrowd", "area" and, if there are, "segmentation" and "keypoints"; "left_out" has
            the annotations that the evaluation counts and training cannot use.
        classes: the id (as the json has it) and name of each.
        image_ids: from a record's "image_id" to the json's, where it is another.
        annotated: False where the json has no annotations to evaluate with.
        findings: what was made regular, what is odd, and what training fails on.
    """

    records: Sequence[dict[str, Any]]
    classes: list[dict[str, Any]]
    image_ids: dict[int, Any]
    annotated: bool
    findings: Findings


def _require_lists(content: Any, where: str) -> None:
    """Check that the parsed content has COCO's lists, and their records COCO's keys."""
    for key in ("images", "categories", "annotations"):
        lists = content if isinstance(content, dict) else {}
        if not isinstance(lists.get(key, [] if key == "annotations" else None), list):
            raise ISONetError(f'{where} is not COCO\'s format: no list "{key}" in it')
    keys = ("image_id", "category_id", "bbox")
    require(where, "images", content["images"], ("id", "file_name", "height", "width"))
    require(where, "categories", content["categories"], ("id",))
    require(where, "annotations", content.get("annotations", ()), keys)
    if not content["images"] or not content["categories"]:
        raise ISONetError(f"{where} has no images or no categories")


class _Identities:
    """The ids of images, categories or annotations, and whole numbers for them.

    Attributes:
        ids: per record, its id as the json has it.
        numbers: per record, its id or, where one of the ids is no whole number, its place.
        places: from an id, as the json has it, to its record's place.

    Raises:
        ISONetError: an id is missing or a list.
    """

    def __init__(self, where: str, what: str, records: Sequence[dict], findings: Findings) -> None:
        first = 1 if what == "annotation" else 0  # pycocotools takes the id 0 for no annotation
        ids = [record.get("id") for record in records]
        if what == "annotation" and None in ids:
            ids = [f"without id, place {i}" if v is None else v for i, v in enumerate(ids)]
        for record, identity in zip(records, ids, strict=True):
            if type(identity) is not int and (identity is None or not _hashable(identity)):
                values = [v for k, v in record.items() if k == "id" or k.endswith("_id")]
                plural = {"category": "categories"}.get(what, f"{what}s")
                raise ISONetError(
                    f"{where} is not COCO's format: {plural} have the ids {values}, not "
                    "whole numbers"
                )
        self.ids = ids
        self.places = {identity: i for i, identity in enumerate(ids)}
        if len(self.places) < len(ids):
            for identity, count in Counter(ids).items():
                if count > 1:
                    findings.add(f"duplicate {what} id", str(identity))
        numbers: list[Any] = [int(v) if type(v) is float and v.is_integer() else v for v in ids]
        invalid = [v for v in numbers if type(v) is not int or not first <= v < MAX_ID]
        if invalid:
            findings.add(f"{what} ids renumbered", repr(invalid[0]), len(invalid))
            numbers = list(range(1, len(ids) + 1))
        self.numbers: list[int] = numbers

    def find(self, identity: Any) -> tuple[int | None, bool]:
        """Place of the record with that id, and whether the id is written in another way there
        ("7" for 7)."""
        if _hashable(identity) and identity in self.places:
            return self.places[identity], False
        for form in (whole_number(identity), str(identity), str(whole_number(identity))):
            if form is not None and form in self.places:
                return self.places[form], True
        return None, False


def _hashable(value: Any) -> bool:
    return not isinstance(value, (list, dict))


def _category_names(categories: Sequence[dict], findings: Findings) -> list[str]:
    """A text of its own for each category."""
    counts = Counter(c["name"] for c in categories if isinstance(c.get("name"), str))
    names: list[str] = []
    for category in categories:
        name = value = category.get("name")
        if not isinstance(name, str) or not name.strip() or name in names:
            name = "" if _hashable(name) is False or name is None else str(name).strip()
            if not name or name in names or name in counts:
                name = f"{name or 'category'} ({category['id']})"
            while name in names or name in counts:
                name += "'"
            example = f"{value!r} of category {category['id']}, now {name!r}"
            findings.add("category without a name of its own", example)
        names.append(name)
    return names


def _record(image: dict, number: int, findings: Findings) -> dict[str, Any]:
    """An image's record, without annotations yet."""
    name, height, width = image["file_name"], image["height"], image["width"]
    if type(height) is not int or type(width) is not int:
        height, width = whole_number(height), whole_number(width)
        findings.add("height and width made whole numbers", f"image {image['id']}")
    if not height or not width or height <= 0 or width <= 0:
        sides = f"height and width {image['height']!r} and {image['width']!r}"
        kind = "image without a usable height and width"
        findings.add(kind, f"image {image['id']} has file_name {name!r} and {sides}")
        height = width = 0
    kind, problem = "file name that is no path here", f"image {image['id']}: {name!r}"
    if not isinstance(name, str) or not name:
        findings.add(kind, f"{problem} is no text")
        name = ""
    elif "://" in name:
        findings.add(kind, f"{problem} is a web address; download the photos, write their names")
    return {"file_name": name, "height": height, "width": width, "image_id": number}


def _polygons(mask: list, name: str, findings: Findings) -> tuple[list | None, bool]:
    """The usable polygons of a mask, and whether there were unusable ones only."""
    if mask and is_number(mask[0]):
        findings.add("flat polygon put into a list", name)
        mask = [mask]
    short = 0
    for polygon in mask:
        if not is_polygon(polygon):
            example = f"{name}: {str(polygon)[:40]} is no flat list of x, y, x, y, ..."
            findings.add("mask that is neither polygons nor RLE", example)
            return None, False
        short += len(polygon) < 6
    if short:
        findings.add("polygon with fewer than three points", name)
        mask = [polygon for polygon in mask if len(polygon) >= 6]
    return mask or None, bool(short) and not mask


def _mask(mask: Any, record: dict, name: str, findings: Findings) -> tuple[Any, bool]:
    """A regular mask or None, and whether the annotation is to be left out of training."""
    if type(mask) is list:
        return _polygons(mask, name, findings)
    if not mask:  # null, {}, ""
        return None, False
    if not isinstance(mask, dict):
        example = f"{name}: {str(mask)[:40]}"
        findings.add("mask that is neither polygons nor RLE", example)
        return None, False
    rle, kind, example = regular_rle(mask, record["height"], record["width"])
    if rle is None:
        findings.add(kind, f"{name}: {example}")
    return rle, False


def _box(box: Any, record: dict, name: str, findings: Findings, boxes: Counter) -> list:
    """A regular box; what kind it could be of is counted in ``boxes``."""
    if not (type(box) is list and len(box) == 4 and all(map(is_number, box))):
        value, box = box, numbers_of(box, 4)
        kind = "box of text made numbers" if box else "box that is not [x, y, width, height]"
        findings.add(kind, f"{name}: {value}")
        if box is None:
            return [0, 0, 0, 0]
    x, y, w, h = box
    width, height = record["width"], record["height"]
    boxes["all"] += 1
    if w <= 0 or h <= 0:
        findings.add("box without area", f"{name}: {box}")
    if x < w <= width + 1 and y < h <= height + 1 and x >= 0 and y >= 0:
        boxes["corners"] += 1
    if w <= 1 and h <= 1 and x <= 1 and y <= 1 and width > 8 and height > 8:
        boxes["fractions"] += 1
    # A pixel of rounding is common in COCO itself.
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        findings.add("box outside its image", f"{name}: {box} in {width}x{height}")
    return box


def _masks_end_at(records: Sequence[dict], what: str) -> bool:
    """Whether masks speak for boxes that are "corners" or "sizes"; without masks, for either."""
    votes: Counter = Counter()
    for mark in (mark for record in records for mark in record["annotations"]):
        if isinstance(mark.get("segmentation"), list):
            x, _, w, _ = mark["bbox"]
            end = max(max(polygon[::2]) for polygon in mark["segmentation"])
            votes["corners" if abs(end - w) < abs(end - x - w) else "sizes"] += 1
    return votes[what] == max(votes.values(), default=0)


def _judge_boxes(boxes: Counter, records: Sequence[dict], findings: Findings) -> None:
    """Find boxes of another kind than [x, y, width, height] by what all of them have in common."""
    corners = boxes["corners"] >= 0.99 * boxes["all"]
    leaving = findings.counts["box outside its image"]
    if corners and leaving > 0.25 * boxes["all"] and _masks_end_at(records, "corners"):
        example = findings.examples["box outside its image"][0]
        findings.add("boxes that seem to be [x1, y1, x2, y2]", example, boxes["all"])
    elif boxes["all"] and boxes["fractions"] >= 0.99 * boxes["all"]:
        example = "all of them are at most 1"
        findings.add("boxes that seem to be fractions of the image", example, boxes["all"])


def _crowd(annotation: dict, name: str, findings: Findings) -> int:
    """iscrowd as 0 or 1; what is to be ignored is a crowd."""
    value = annotation.get("iscrowd")
    crowd = regular_flag(value)
    if crowd is None:
        findings.add("iscrowd that is neither 0 nor 1", f"{name}: {value!r}")
    elif type(value) is not int:
        findings.add("iscrowd made 0 or 1", f"{name}: {value!r}")
    if annotation.get("ignore") and regular_flag(annotation["ignore"]) != 0:
        findings.add("ignore read as iscrowd", name)
        return 1
    return crowd or 0


def _keypoints(value: Any, name: str, findings: Findings) -> list | None:
    points = numbers_of(value, len(value)) if isinstance(value, list) else None
    if points and len(points) % 3 == 0:
        # Detectron2's form: COCO's are pixel indices, and its own lie between pixels.
        return [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(points)]
    if value:
        findings.add("keypoints that are no triples left out", f"{name}: {str(value)[:40]}")
    return None


def _annotation(
    annotation: dict, name: str, record: dict, category: int, findings: Findings, boxes: Counter
) -> tuple[dict[str, Any], bool]:
    """An annotation in Detectron2's form, and whether training has to leave it out."""
    crowd = annotation.get("iscrowd")
    if type(crowd) is not int or crowd not in (0, 1) or "ignore" in annotation:
        crowd = _crowd(annotation, name, findings)
    result = {
        "iscrowd": crowd,
        "bbox": _box(annotation["bbox"], record, name, findings, boxes),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
    }
    mask, left_out = _mask(annotation.get("segmentation"), record, name, findings)
    if mask is not None:
        result["segmentation"] = mask
        if type(mask) is dict and not crowd:
            findings.add("instance with a run-length encoded mask", name)
    elif not crowd and not left_out:
        findings.add("instance without a mask", name)
    area: Any = annotation.get("area")
    if not is_number(area) or area < 0:
        findings.add("area computed", f"{name}: {area!r}")
        area = result["bbox"][2] * result["bbox"][3]
        if mask is not None and not findings.fatal:
            area = float(mask_util.area(as_rle(mask, record["height"], record["width"])))
    result["area"] = area
    if annotation.get("keypoints") is not None:
        points = _keypoints(annotation["keypoints"], name, findings)
        if points:
            result["keypoints"] = points
    if left_out:
        kind = "instance without valid segmentation (polygons of fewer than three points) left out"
        findings.add(kind, name)
    return result, left_out


def _add_annotations(
    form: Regular,
    annotations: Sequence[dict],
    identities: tuple[_Identities, _Identities, _Identities],
    records: Sequence[dict],
    class_of: Mapping[int, int],
) -> None:
    """Put every annotation into its image's record.

    Args:
        form: to be filled.
        annotations: as the json has them.
        identities: of images, categories and annotations.
        records: in the order of the json's images.
        class_of: from a category's place in the json to its class.
    """
    images, categories, annotation_ids = identities
    findings, boxes = form.findings, Counter[str]()
    for annotation, identity in zip(annotations, annotation_ids.ids, strict=True):
        name = f"annotation {identity}"
        place, respelled = images.find(annotation["image_id"])
        category, respelled_too = categories.find(annotation["category_id"])
        if place is None or category is None:
            key, what = ("image_id", "image") if place is None else ("category_id", "category")
            identity = annotation[key]
            text = identity if type(identity) is int else repr(identity)
            findings.add(f"annotation of an unknown {what}", f"{name}: {text}")
            continue
        if respelled or respelled_too:
            kind = "id written in another way than its image's or category's"
            findings.add(kind, f"{name}: {annotation['image_id']!r}, {annotation['category_id']!r}")
        record = records[place]
        result, left_out = _annotation(
            annotation, name, record, class_of[category], findings, boxes
        )
        if left_out:
            record.setdefault("left_out", []).append(result)
        else:
            record["annotations"].append(result)
    _judge_boxes(boxes, records, findings)


def regularize(content: Any, where: str) -> Regular:
    """Make the parsed content of a COCO json regular; the content stays as it is.

    Args:
        content: of the file.
        where: what an error begins with, such as the names of data set and file.

    Returns:
        the regular form. What would let training fail is among its findings.

    Raises:
        ISONetError: it has not COCO's lists, or a record has not their keys.
    """
    _require_lists(content, where)
    findings = Findings()
    annotations = content.get("annotations", [])
    images = _Identities(where, "image", content["images"], findings)
    categories = _Identities(where, "category", content["categories"], findings)
    identities = _Identities(where, "annotation", annotations, findings)
    names = _category_names(content["categories"], findings)
    order = sorted(range(len(names)), key=categories.numbers.__getitem__)
    class_of = {place: i for i, place in enumerate(order)}
    records = [
        _record(image, number, findings)
        for image, number in zip(content["images"], images.numbers, strict=True)
    ]
    for record in records:
        record["annotations"] = []
    form = Regular(
        sorted(records, key=lambda r: r["image_id"]),
        [{"id": content["categories"][p]["id"], "name": names[p]} for p in order],
        {w: v for w, v in zip(images.numbers, images.ids, strict=True) if str(v) != str(w)},
        bool(annotations),
        findings,
    )
    _add_annotations(form, annotations, (images, categories, identities), records, class_of)
    _note_the_bare(form)
    return form


def _note_the_bare(form: Regular) -> None:
    """Note images and categories without annotations."""
    seen: set[int] = set()
    for record in form.records:
        marks = record["annotations"]
        if marks:
            seen.update([a["category_id"] for a in marks])
        elif "left_out" not in record:
            form.findings.add("image without annotations", record["file_name"])
    for i, category in enumerate(form.classes):
        if i not in seen:
            form.findings.add("category without annotations", category["name"])
