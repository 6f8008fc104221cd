"""A COCO json as found in the wild, made a regular one that Detectron2 and pycocotools read."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pycocotools import mask as mask_util

from ..errors import ISONetError
from .findings import MADE, Findings
from .values import as_rle, decode_counts, flag, four_numbers, is_number, is_polygon, whole_number

_WANTED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id",),
    "annotations": ("image_id", "category_id", "bbox"),
}


def regularize(
    content: Any, where: str, classes: Sequence[str] | None = None, reference: str = ""
) -> tuple[dict[str, Any], Findings, list[dict[str, Any]]]:
    """Make the parsed content of a COCO json regular; ids are whole numbers, those of categories
    in the order of ``classes``, ``reference``'s names. Returns the content (``content`` itself
    where it is regular), what was found, and the json's own id and name of each class."""
    _require_lists(content, where)
    findings = Findings()
    images, categories, marks = (
        _Identities(where, key, content.get(key, []), findings) for key in _WANTED
    )
    sizes = [_image(image, findings) for image in content["images"]]
    names = _category_names(content["categories"], findings)
    found = _annotations(content, images, categories, marks.ids, sizes, findings)
    with_objects, annotated = {p for p, _, _ in found}, {names[c] for _, c, _ in found}
    for place, identity in enumerate(images.ids):
        if place not in with_objects:
            findings.note("image without annotations", f"image {identity}")
    for name in names:
        if name not in annotated:
            findings.note("category without annotations", name)

    order = sorted(range(len(names)), key=categories.numbers.__getitem__)
    own = [names[place] for place in order]
    known = list(own if classes is None else classes)
    absent = [name for name in known if name not in own]
    extra = [name for name in own if name in annotated and name not in known]
    if extra:
        both = f"the classes {extra[:8]}, {reference} has {known[:8]}"
        raise ISONetError(f"{where} has {both}; give the same names to the same classes")
    if absent:
        findings.made("classes missing", f"it has not all classes of {reference}: {absent}")
    if [n for n in own if n in known] != [n for n in known if n in own]:
        findings.made("classes in another order", f"than {reference}: they are mapped by name")
    originals = dict(zip(names, categories.ids, strict=True))
    listed: list[dict[str, Any]]
    listed = [{"id": originals.get(name), "name": name} for name in known]
    if known == own and not findings.kinds(MADE):
        return content, findings, listed
    numbers = {name: i + 1 for i, name in enumerate(known)}
    regular = {
        "images": [
            {**image, **size, "id": number, "original_id": image["id"]}
            for image, size, number in zip(content["images"], sizes, images.numbers, strict=True)
        ],
        "categories": [{**c, "id": numbers[c["name"]], "original_id": c["id"]} for c in listed],
    }
    if found:
        regular["annotations"] = [
            {**a, "id": i + 1, "image_id": images.numbers[p], "category_id": numbers[names[c]]}
            for i, (p, c, a) in enumerate(found)
        ]
    return regular, findings, listed


def _require_lists(content: Any, where: str) -> None:
    lists = content if isinstance(content, dict) else {}
    for key, keys in _WANTED.items():
        records = lists.get(key, [] if key == "annotations" else None)
        if not isinstance(records, list):
            raise ISONetError(f'{where} is not COCO\'s format: no list "{key}" in it')
        for i, record in enumerate(records):
            absent = [k for k in keys if k not in record] if isinstance(record, dict) else keys
            if absent:
                raise ISONetError(f"{where} is not COCO's format: {key}[{i}] has no {absent[0]}")
    if not content["images"] or not content["categories"]:
        raise ISONetError(f"{where} has no images or no categories")


class _Identities:
    """The ids of a list's records, and whole numbers for them: their own, or their places."""

    def __init__(self, where: str, key: str, records: Sequence[dict], findings: Findings) -> None:
        what = {"categories": "category"}.get(key, key[:-1])
        first = 1 if what == "annotation" else 0  # pycocotools takes the id 0 for no annotation
        self.ids = ids = [record.get("id") for record in records]
        if what == "annotation" and None in ids:
            ids[:] = [f"without id, place {i}" if v is None else v for i, v in enumerate(ids)]
        for identity in ids:
            if identity is None or isinstance(identity, (list, dict)):
                found = f"{key} have the id {identity}, no whole number"
                raise ISONetError(f"{where} is not COCO's format: {found}")
        self.places: dict[Any, int] = {identity: i for i, identity in enumerate(ids)}
        self.places_as_text = {str(_whole(identity)): i for i, identity in enumerate(ids)}
        if len(self.places) < len(ids):
            for identity, count in Counter(ids).items():
                if count > 1:
                    findings.fails(f"duplicate {what} id", str(identity))
        numbers: list[Any] = [_whole(v) if type(v) is float else v for v in ids]
        invalid = any(type(v) is not int or not first <= v < 2**63 for v in numbers)
        self.numbers: list[int] = list(range(1, len(ids) + 1)) if invalid else numbers
        for identity, number in zip(ids, self.numbers, strict=True):
            if type(identity) is not int or identity != number:
                findings.made(f"{what} ids renumbered", repr(identity))

    def find(self, identity: Any) -> tuple[int | None, bool]:
        """Place of the record with that id, and whether the id is written as there (7, not "7")."""
        if not isinstance(identity, (list, dict)) and identity in self.places:
            return self.places[identity], type(identity) is not float
        return self.places_as_text.get(str(_whole(identity))), False


def _whole(identity: Any) -> Any:
    number = whole_number(identity)
    return identity if number is None else number


def _category_names(categories: Sequence[dict], findings: Findings) -> list[str]:
    """A text of its own for each category."""
    given = [c["name"] for c in categories if isinstance(c.get("name"), str)]
    names: list[str] = []
    for category in categories:
        value = name = category.get("name")
        if not isinstance(value, str) or not value.strip() or value in names:
            name = str(value).strip() if isinstance(value, (str, int, float)) else ""
            if not name or name in [*names, *given]:
                name = f"{name or 'category'} ({category['id']})"
            while name in [*names, *given]:
                name += "'"
            example = f"{value!r} of category {category['id']}, now {name!r}"
            findings.made("category without a name of its own", example)
        names.append(str(name))
    return names


def _image(image: dict, findings: Findings) -> dict[str, Any]:
    name, height, width = image["file_name"], image["height"], image["width"]
    if type(height) is not int or type(width) is not int:
        height, width = whole_number(height), whole_number(width)
        findings.made("height and width made whole numbers", f"image {image['id']}")
    if not height or not width or height <= 0 or width <= 0:
        sides = f"height and width {image['height']!r} and {image['width']!r}"
        example = f"image {image['id']} has file_name {name!r} and {sides}"
        findings.fails("image without a usable height and width", example)
        height = width = 0
    if not isinstance(name, str) or not name or "://" in name:
        advice = "download the photos and write their names" if name else "no text"
        findings.fails("file name that is no path here", f"image {image['id']}: {name!r}: {advice}")
        name = ""
    return {"file_name": name, "height": height, "width": width}


def _annotations(
    content: dict,
    images: _Identities,
    categories: _Identities,
    ids: Sequence[Any],
    sizes: Sequence[dict],
    findings: Findings,
) -> list[tuple[int, int, dict]]:
    found, boxes, objects = [], Counter[str](), findings.objects
    for annotation, identity in zip(content.get("annotations", ()), ids, strict=True):
        name = f"annotation {identity}"
        place, as_there = images.find(annotation["image_id"])
        category, as_there_too = categories.find(annotation["category_id"])
        if place is None or category is None:
            key, what = ("image_id", "image") if place is None else ("category_id", "category")
            findings.fails(f"annotation of an unknown {what}", f"{name}: {annotation[key]!r}")
            continue
        if not (as_there and as_there_too):
            example = f"{name}: {annotation['image_id']!r}, {annotation['category_id']!r}"
            findings.made("id written in another way than its image's or category's", example)
        regular = _annotation(annotation, name, sizes[place], findings, boxes)
        found.append((place, category, regular))
        objects["all"] += 1
        if regular["iscrowd"]:
            objects["crowd"] += 1
        else:
            _, _, width, height = regular["bbox"]
            lone = _is_lone(regular.get("segmentation"))
            objects["usable"] += width > 0 and height > 0 and not lone
            objects[f"keypoints {len(regular.get('keypoints') or ()) // 3}"] += 1
    _judge_boxes(boxes, findings)
    return found


def _annotation(
    annotation: dict, name: str, image: dict, findings: Findings, boxes: Counter
) -> dict[str, Any]:
    """An annotation with what is irregular replaced."""
    changes: dict[str, Any] = {}
    crowd, box = annotation.get("iscrowd"), annotation["bbox"]
    if type(crowd) is not int or crowd not in (0, 1) or annotation.get("ignore"):
        crowd = changes["iscrowd"] = _crowd(annotation, name, findings)
    box = _box(box, image, name, findings, boxes)
    mask = _mask(annotation.get("segmentation"), image, name, findings)
    for key, value in (("bbox", box), ("segmentation", mask)):
        if value is not annotation.get(key):
            changes[key] = value
    if isinstance(mask, dict) and not crowd:
        findings.note("instance with a run-length encoded mask", name)
    elif not mask and not crowd:
        findings.note("instance without a mask", name)
    if not is_number(annotation.get("area")) or annotation["area"] < 0:
        findings.made("area computed", f"{name}: {annotation.get('area')!r}")
        changes["area"] = box[2] * box[3]
        if mask and image["height"] and not _is_lone(mask):
            rle = as_rle(mask, image["height"], image["width"])
            changes["area"] = float(mask_util.area(rle))
    points = annotation.get("keypoints")
    triples = isinstance(points, list) and len(points) % 3 == 0 and all(map(is_number, points))
    if points and not triples:
        findings.made("keypoints that are no triples left out", f"{name}: {points!s:.40}")
        changes["keypoints"] = []
    return {**annotation, **changes} if changes else annotation


def _crowd(annotation: dict, name: str, findings: Findings) -> int:
    """iscrowd as 0 or 1; what is to be ignored is a crowd."""
    value = annotation.get("iscrowd")
    crowd = flag(value)
    if crowd is None:
        findings.fails("iscrowd that is neither 0 nor 1", f"{name}: {value!r}")
    elif type(value) is not int:
        findings.made("iscrowd made 0 or 1", f"{name}: {value!r}")
    if flag(annotation.get("ignore")) != 0:
        findings.made("ignore read as iscrowd", name)
        return 1
    return crowd or 0


def _box(box: Any, image: dict, name: str, findings: Findings, boxes: Counter) -> list:
    """A regular box; what kind it could be of is counted in ``boxes``."""
    if not (type(box) is list and len(box) == 4 and all(map(is_number, box))):
        value, box = box, four_numbers(box)
        if box is None:
            findings.fails("box that is not [x, y, width, height]", f"{name}: {value}")
            return [0, 0, 0, 0]
        findings.made("box of text made numbers", f"{name}: {value}")
    x, y, w, h = box
    width, height = image["width"], image["height"]
    boxes["all"] += 1
    if w <= 0 or h <= 0:
        findings.note("box without area", f"{name}: {box}")
    if x < w <= width + 1 and y < h <= height + 1 and x >= 0 and y >= 0:
        boxes["corners"] += 1
    if w <= 1 and h <= 1 and x <= 1 and y <= 1 and width > 8 and height > 8:
        boxes["fractions"] += 1
    # A pixel of rounding is common in COCO itself.
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        findings.note("box outside its image", f"{name}: {box} in {width}x{height}")
        boxes["far outside"] += x + w > 1.1 * width or y + h > 1.1 * height
    return box


def _judge_boxes(boxes: Counter, findings: Findings) -> None:
    """Find boxes of another kind than [x, y, width, height] by what all of them have in common."""
    outside, form = "box outside its image", "[x1, y1, x2, y2]"
    if boxes["corners"] >= 0.99 * boxes["all"] and findings.counts[outside] > 0.25 * boxes["all"]:
        example = findings.examples[outside][0]
        if boxes["far outside"] > 0.25 * boxes["all"]:
            advice = f"{example}; write [x1, y1, x2 - x1, y2 - y1]"
            findings.fails(f"boxes that seem to be {form}", advice, boxes["all"])
        else:
            findings.note(f"boxes that may be {form}", example, boxes["all"])
    elif boxes["all"] and boxes["fractions"] >= 0.99 * boxes["all"]:
        advice = "all of them are at most 1; multiply by the image's width and height, polygons too"
        findings.fails("boxes that seem to be fractions of the image", advice, boxes["all"])


def _mask(mask: Any, image: dict, name: str, findings: Findings) -> Any:
    """A regular mask; the same object where it is regular, nothing where there is none."""
    if type(mask) is list:
        return _polygons(mask, name, findings)
    if not mask:  # null, {}, ""
        return mask if mask is None else []
    if not isinstance(mask, dict):
        findings.fails("mask that is neither polygons nor RLE", f"{name}: {mask!s:.40}")
        return None
    size, counts = mask.get("size"), mask.get("counts")
    expected = [image["height"], image["width"]]
    if not isinstance(size, list) or [whole_number(v) for v in size] != expected:
        findings.fails("mask (RLE) of another size than its image", f"{name}: {size}, {expected}")
        return None
    if isinstance(counts, list):
        runs: list | None = [whole_number(c) for c in counts]
    else:
        runs = decode_counts(counts) if isinstance(counts, str) else None
    pixels, kind = expected[0] * expected[1], "mask (RLE) whose counts do not fill its image"
    if runs is None or any(r is None or r < 0 for r in runs):
        findings.fails(kind, f"{name}: counts are no run lengths: {counts!s:.40}")
        return None
    if sum(runs) != pixels:
        findings.fails(kind, f"{name}: they sum to {sum(runs)}, not {pixels} pixels")
        return None
    if all(type(v) is int for v in [*size, *(counts if isinstance(counts, list) else ())]):
        return mask
    findings.made("numbers of a mask (RLE) made whole", name)
    return {"size": expected, "counts": runs if isinstance(counts, list) else counts}


def _polygons(mask: list, name: str, findings: Findings) -> list | None:
    if mask and is_number(mask[0]):
        findings.made("flat polygon put into a list", name)
        mask = [mask]
    for polygon in mask:
        if not is_polygon(polygon):
            example = f"{name}: {polygon!s:.40} is no flat list of x, y, x, y, ..."
            findings.fails("mask that is neither polygons nor RLE", example)
            return None
    rest = [polygon for polygon in mask if len(polygon) >= 6]
    if len(rest) == len(mask):
        return mask
    findings.made("polygon with fewer than three points left out", name)
    if rest:
        return rest
    findings.made("instance without valid segmentation left out", name)
    # Of an odd length: Detectron2 leaves such an instance out of training, and pycocotools, for
    # which the evaluation counts it, draws nothing.
    return [[*mask[0], 0, 0, 0, 0][:4] + [0]]


def _is_lone(mask: Any) -> bool:
    return isinstance(mask, list) and len(mask) == 1 and len(mask[0]) == 5
