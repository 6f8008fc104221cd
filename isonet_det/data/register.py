"""A COCO json is made regular once, in a cache; from there on it is any COCO set of Detectron2."""

import codecs
import gc
import gzip
import hashlib
import json
import locale
import logging
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from filelock import FileLock

from ..errors import ISONetError
from ..files import cache_dir, write_file
from .findings import Findings
from .regular import regularize

VERSION = 1  # of the rules in regular.py: another one must not meet an old cache
# What registering and loading write.
_DERIVED = (
    *("name", "json_file", "image_root", "evaluator_type", "source_file", "classes", "counts"),
    *("thing_classes", "thing_dataset_id_to_contiguous_id"),
)


@dataclass(frozen=True)
class CocoSet:
    name: str
    source_file: str  # the person's json
    file: str  # the regular one, which may be the same
    image_root: str
    classes: list[dict[str, Any]]  # name, and the person's id or None
    category_ids: list[int]  # of the classes in ``file``
    photos: list[tuple[str, int, int, Any]]  # file name, height, width, the person's id
    findings: Findings

    @property
    def class_names(self) -> list[str]:
        return [category["name"] for category in self.classes]


def hint() -> str:
    """What decides where the built-in data sets are looked for."""
    root = os.environ.get("DETECTRON2_DATASETS", "not set, so ./datasets is taken")
    return f"; DETECTRON2_DATASETS, the folder of the built-in data sets, is {root}"


def register_from_argument(argument: str) -> str:
    """Register ``NAME=annotations.json:image_root`` as a COCO-format data set; returns NAME."""
    name, json_file, image_root = parse_argument(argument)
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, json_file, image_root)
    metadata = MetadataCatalog.get(name)
    if (source_of(metadata), metadata.get("image_root")) != (json_file, image_root):
        raise ISONetError(f"--dataset {name}: a data set of that name is registered already")
    return name


def parse_argument(argument: str) -> tuple[str, str, str]:
    name, _, paths = argument.partition("=")
    pairs = [(paths[:i], paths[i + 1 :]) for i, sign in enumerate(paths) if sign == ":"]
    pairs = [(os.path.expanduser(a), os.path.expanduser(b)) for a, b in pairs if a and b]
    if not (name and pairs):
        raise ISONetError(f"--dataset is NAME=annotations.json:image_root, found {argument!r}")
    # The colon that parts two paths that are there; a path may have colons of its own.
    existing = [pair for pair in pairs if os.path.isfile(pair[0]) and os.path.isdir(pair[1])]
    return name, *(existing or pairs)[-1]


def source_of(metadata: Metadata) -> str | None:
    """The person's json of a registered set."""
    return metadata.get("source_file", metadata.get("json_file"))


def _is_coco(name: str) -> bool:
    """Whether a registered set is what Detectron2 or this package makes of a COCO json."""
    metadata = MetadataCatalog.get(name)
    module = getattr(DatasetCatalog.data.get(name), "__module__", "")
    return (
        metadata.get("json_file") is not None
        and metadata.get("image_root") is not None
        and module.startswith(("detectron2.data.datasets", "isonet_det.data"))
        and metadata.get("evaluator_type", "coco") == "coco"
    )


def open_set(
    name: str, classes: Sequence[str] | None = None, reference: str = ""
) -> CocoSet | None:
    """Register a COCO set's regular form under its name; None for somebody's own function."""
    if not _is_coco(name):
        return None
    metadata = MetadataCatalog.get(name)
    metadata.get("make_files", lambda: None)()
    data = _read(name, str(source_of(metadata)), metadata.image_root, classes, reference)
    if data.file != metadata.json_file:
        others = {k: v for k, v in metadata.as_dict().items() if k not in _DERIVED}
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
        others["source_file"] = data.source_file
        register_coco_instances(name, others, data.file, data.image_root)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("classes"):
        metadata.set(
            classes=data.classes,
            thing_classes=data.class_names,
            counts=(len(data.photos), data.findings.objects["all"]),
            thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(data.category_ids)},
        )
    return data


def class_records(name: str) -> list[dict[str, Any]] | None:
    """Id and name of each class of a registered data set; None where nobody knows."""
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    ids = {n: i for i, n in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
    derived = names and [{"id": ids.get(i, i), "name": name} for i, name in enumerate(names)]
    return metadata.get("classes", derived)


def _read(
    name: str, source: str, image_root: str, classes: Sequence[str] | None, reference: str
) -> CocoSet:
    """The regular form of a json, from the cache or made now."""
    path = PathManager.get_local_path(source)
    where = f"data set {name}: {source}"
    if not os.path.isfile(path):
        raise ISONetError(f"data set {name}: no annotation file {source}{hint()}")
    known = None if classes is None else list(classes)
    key = repr((VERSION, os.path.realpath(path), known))
    identity = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:20]
    folder = cache_dir() / "regular"
    note_file, regular_file = folder / f"{identity}.note", folder / f"{identity}.json"
    state = [os.stat(path).st_mtime_ns, os.stat(path).st_size]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of several processes one makes it while the others wait.
        with FileLock(f"{note_file}.lock"):
            note = json.loads(note_file.read_bytes()) if note_file.is_file() else {}
            if note.get("state") != state:
                note = _make_note(path, source, where, known, reference, regular_file)
                write_file(note_file, json.dumps({**note, "state": state}))
    except OSError as error:
        hint_of_cache = f"{error.strerror}; name another folder in ISONET_DET_CACHE"
        raise ISONetError(f"{where}: the cache {folder}: {hint_of_cache}") from error
    findings = Findings(
        note["levels"],
        Counter(note["counts"]),
        defaultdict(list, note["examples"]),
        Counter(note["objects"]),
    )
    for line in findings.changes():
        log_first_n(logging.WARNING, f"{where}: {line}", key="message")
    file = str(regular_file) if note["made"] else source
    photos = [tuple(photo) for photo in note["photos"]]
    return CocoSet(
        name, source, file, image_root, note["classes"], note["category_ids"], photos, findings
    )


def _make_note(
    path: str,
    source: str,
    where: str,
    classes: list[str] | None,
    reference: str,
    regular_file: Path,
) -> dict[str, Any]:
    # Millions of new objects, none of them in a cycle: the collector would take half the time.
    gc.disable()
    try:
        content, as_is = read_json(path, where)
        regular, findings, listed = regularize(content, where, classes, reference)
        if "minival" in source:  # COCO's own of 2014, whose repetitions do no harm
            del findings.counts["duplicate annotation id"]
        if findings.fatal:
            raise ISONetError(f"{where}: {findings.fatal}")
        made = regular is not content or not as_is
        if made:
            write_file(regular_file, json.dumps(regular))
    finally:
        gc.enable()
    images = sorted(regular["images"], key=lambda image: image["id"])
    return {
        "made": made,
        "classes": listed,
        "category_ids": sorted(category["id"] for category in regular["categories"]),
        "photos": [
            (i["file_name"], i["height"], i["width"], i.get("original_id", i["id"])) for i in images
        ],
        **vars(findings),
    }


def read_json(path: str, where: str) -> tuple[Any, bool]:
    """The parsed file, and whether Detectron2 can read it as it is."""
    try:
        stored = data = Path(path).read_bytes()
        if stored[:2] == b"\x1f\x8b":
            data = gzip.decompress(stored)
        # pycocotools opens files in the locale's encoding.
        utf8 = locale.getpreferredencoding(False).lower() == "utf-8"
        plain = data.isascii() or (utf8 and not data.startswith(codecs.BOM_UTF8))
        return json.loads(data), plain and data is stored
    except FileNotFoundError as error:
        raise ISONetError(f"there is no file {path}") from error
    except (ValueError, RecursionError, OSError, EOFError, zlib.error) as error:
        raise ISONetError(f"{where} is no json that can be read ({error})") from error


def register_made(name: str, json_file: str, image_root: str, make: Callable[[], None]) -> None:
    """Register a COCO set whose files are made when they are first used."""

    def load() -> list[dict]:
        make()
        return load_coco_json(json_file, image_root, name)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", make_files=make
    )
