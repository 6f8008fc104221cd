"""A thorough look over a data set: every photo decoded, every annotation examined."""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from .annotations import Findings
from .checks import check_image_root, check_registered, settle_orientations
from .photos import examine_photo
from .sets import make_files, read_regular


def _examine(photo: tuple[str, int, int]) -> tuple[str, str] | None:
    return examine_photo(*photo)


def examine_photos(
    photos: Iterable[tuple[str, int, int]], findings: Findings, workers: int
) -> None:
    """Decode every photo, in parallel.

    Args:
        photos: path, height and width of each.
        findings: what is found is added here.
        workers: processes.
    """
    photos = list(photos)
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        results = pool.map(_examine, photos, chunksize=32)
        for result in tqdm(results, total=len(photos), unit="photo", disable=None):
            if result is not None:
                findings.add(*result)
    settle_orientations(findings)


def examine_dataset(name: str, workers: int) -> Findings:
    """Everything about a registered data set: its photos and, if it has a COCO json, its
    annotations.

    Args:
        name: as in ``DATASETS.TRAIN``.
        workers: processes that decode photos.

    Raises:
        ISONetError: it is not registered, or its json or image folder cannot be read.
    """
    check_registered(name)
    make_files(name)
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if json_file is None or image_root is None:
        findings, records, image_root = Findings(), DatasetCatalog.get(name), ""
    else:
        form = read_regular(name, json_file)
        check_image_root(name, image_root)
        findings, records = form.findings, form.records
    photos = [
        (os.path.join(image_root, r["file_name"]), r["height"], r["width"])
        for r in records
        if r["file_name"] and r["height"] and r["width"]
    ]
    examine_photos(photos, findings, workers)
    return findings
