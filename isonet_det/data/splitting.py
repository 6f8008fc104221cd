"""One COCO json in two, by photos."""

import random
from collections import defaultdict
from typing import Any


def split_photos(content: dict[str, Any], share: float, seed: int) -> list[dict[str, Any]]:
    """The regular content of a COCO json in two: to train and, a ``share`` of the photos, to
    evaluate. A class of two photos or more is in both, as far as classes that share photos let it.
    The same seed makes the same parts."""
    photos = [image["id"] for image in content["images"]]
    random.Random(seed).shuffle(photos)
    place = {photo: i for i, photo in enumerate(photos)}
    with_class: dict[Any, set] = defaultdict(set)
    for annotation in content.get("annotations", []):
        with_class[annotation["category_id"]].add(annotation["image_id"])
    parts: dict[Any, str] = {}
    for found in sorted(with_class.values(), key=len):  # rare classes have the least choice
        for part in ("val", "train") if len(found) > 1 else ():
            free = sorted(found - parts.keys(), key=place.__getitem__)
            if free and part not in {parts.get(photo) for photo in found}:
                parts[free[0]] = part
    rest = [photo for photo in photos if photo not in parts]
    wanted = max(round(share * len(photos)) - list(parts.values()).count("val"), 0)
    val = {photo for photo, part in parts.items() if part == "val"} | set(rest[:wanted])
    return [
        {
            **content,
            "images": [i for i in content["images"] if (i["id"] in val) == to_evaluate],
            "annotations": [
                a for a in content.get("annotations", []) if (a["image_id"] in val) == to_evaluate
            ],
        }
        for to_evaluate in (False, True)
    ]
