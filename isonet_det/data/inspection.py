"""A thorough look over a data set: every photo decoded, every annotation examined."""

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from ..errors import ISONetError
from .checks import check_registered
from .findings import FAILS, NOTE, Findings
from .photos import examine_photo
from .register import read_json, source_of
from .regular import regularize


def count_objects(content: dict[str, Any]) -> list[str]:
    """Photos, and objects by class and by COCO's sizes."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    annotations = content.get("annotations", [])
    classes = Counter(names[a["category_id"]] for a in annotations if a["category_id"] in names)
    areas = [a["area"] for a in annotations if "area" in a]
    small, most = (sum(area < side**2 for area in areas) for side in (32, 96))
    return [
        f"{len(content['images'])} photos, {len(annotations)} objects",
        ", ".join(f"{name} {classes[name]}" for name in names.values()),
        f"small (area under 32x32 pixels) {small}, medium {most - small}, "
        f"large (from 96x96 up) {len(areas) - most}",
    ]


def examine_dataset(name: str, workers: int) -> tuple[list[str], Findings]:
    """Counts of a registered set, and what was found in its photos and annotations."""
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    metadata.get("make_files", lambda: None)()
    json_file, root = source_of(metadata), ""
    if json_file is None or metadata.get("image_root") is None:
        findings, images = Findings(), DatasetCatalog.get(name)
        counts = [f"{len(images)} photos"]
    else:
        where, root = f"data set {name}: {json_file}", metadata.image_root
        if not os.path.isfile(json_file):
            raise ISONetError(f"data set {name}: no annotation file {json_file}")
        content, findings, _ = regularize(read_json(json_file, where)[0], where)
        images, counts = content["images"], count_objects(content)
        if not os.path.isdir(root):
            raise ISONetError(f"data set {name}: no image folder {root}")
        if not findings.objects["usable"]:
            objects = findings.objects
            found = f"of {objects['all']} annotations {objects['crowd']} have iscrowd 1"
            findings.add(FAILS if name == "own_train" else NOTE, "nothing to train on", found)
    photos = [
        (os.path.join(root, image["file_name"]), image["height"], image["width"], root)
        for image in images
        if image["file_name"] and image["height"] and image["width"]
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        results = pool.map(examine_photo, *zip(*photos, strict=True), chunksize=32)
        for result in tqdm(results, total=len(photos), unit="photo", disable=None):
            if result is not None:
                findings.add(*result)
    findings.settle_orientations()
    return counts, findings
