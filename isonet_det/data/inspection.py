"""A thorough look over a data set: every photo decoded, every annotation examined."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from ..errors import ISONetError
from .checks import check_registered
from .findings import Findings
from .photos import examine_photo
from .register import read_json, source_of
from .regular import regularize


def examine_dataset(name: str, workers: int) -> Findings:
    """Everything about a registered data set: its photos and, if it has a COCO json, its
    annotations."""
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    metadata.get("make_files", lambda: None)()
    json_file, root = source_of(metadata), ""
    if json_file is None or metadata.get("image_root") is None:
        findings, images = Findings(), DatasetCatalog.get(name)
    else:
        where, root = f"data set {name}: {json_file}", metadata.image_root
        if not os.path.isfile(json_file):
            raise ISONetError(f"data set {name}: no annotation file {json_file}")
        content, findings, _ = regularize(read_json(json_file, where)[0], where)
        images = content["images"]
        if not os.path.isdir(root):
            raise ISONetError(f"data set {name}: no image folder {root}")
    photos = [
        (os.path.join(root, image["file_name"]), image["height"], image["width"])
        for image in images
        if image["file_name"] and image["height"] and image["width"]
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        results = pool.map(examine_photo, *zip(*photos, strict=True), chunksize=32)
        for result in tqdm(results, total=len(photos), unit="photo", disable=None):
            if result is not None:
                findings.add(*result)
    findings.settle_orientations()
    return findings
