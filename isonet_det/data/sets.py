"""Data sets in their regular form: a COCO json is parsed once, kept as bytes, and shared between
the processes of a machine."""

import contextlib
import gc
import gzip
import hashlib
import json
import logging
import os
import pickle
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..errors import ISONetError
from .regular import Regular, regularize

logger = logging.getLogger(__name__)

SHARED = "ISONET_DET_SHARED_DATA"  # environment variable: the folder of what another process read


class Records(Sequence):
    """Records as bytes, which take little memory and which forked processes share.

    Args:
        data: all of them, pickled, one after the other.
        ends: (N,) int64, where each ends in ``data``.
        marks: (N,) int64, how many annotations each has that are no crowd.
        usable: how many of all these have a box with an area.
        portrait: (N,) bool, whether the image is not wider than high.
        names: (N,) the photos' paths.
        classes: per class of the records, its number for whoever reads them; None for the same.
    """

    def __init__(
        self,
        data: Any,
        ends: np.ndarray,
        marks: np.ndarray,
        usable: int,
        portrait: np.ndarray,
        names: Sequence[str],
        classes: Sequence[int] | None = None,
    ) -> None:
        self.data, self.ends, self.classes = data, ends, classes
        self.marks, self.usable, self.portrait, self.names = marks, usable, portrait, names

    @classmethod
    def of(cls, records: Sequence[dict]) -> "Records":
        """Records of Detectron2's form, as bytes."""
        parts = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        marks = [[a for a in r["annotations"] if not a["iscrowd"]] for r in records]
        return cls(
            np.frombuffer(b"".join(parts), np.uint8),
            np.cumsum([len(part) for part in parts], dtype=np.int64),
            np.array([len(m) for m in marks]),
            sum(a["bbox"][2] > 0 and a["bbox"][3] > 0 for m in marks for a in m),
            np.array([record["width"] <= record["height"] for record in records]),
            [record["file_name"] for record in records],
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self.ends[index - 1] if index else 0
        record = pickle.loads(memoryview(self.data[start : self.ends[index]]))
        if self.classes is not None:
            for annotation in record["annotations"]:
                annotation["category_id"] = self.classes[annotation["category_id"]]
        return record

    @property
    def _rest(self) -> tuple[np.ndarray, np.ndarray, int, np.ndarray, Sequence[str]]:
        return self.ends, self.marks, self.usable, self.portrait, self.names

    def without_data(self) -> "Records":
        """All but the bytes."""
        return Records(None, *self._rest, classes=self.classes)

    def with_classes(self, classes: Sequence[int]) -> "Records":
        """The same records with other class numbers."""
        return Records(self.data, *self._rest, classes=classes)


@dataclass
class DataSet(Regular):
    """The regular form of a registered data set; its records are :class:`Records`, with paths of
    the photos.

    Attributes:
        name: as in ``DATASETS.TRAIN``.
        json_file, image_root: where it was read.
    """

    records: Records
    name: str
    json_file: str
    image_root: str

    @property
    def class_names(self) -> list[str]:
        return [category["name"] for category in self.classes]


_read: dict[tuple, DataSet] = {}
_make_first: dict[str, Callable[[], None]] = {}


def hint() -> str:
    """What decides where the built-in data sets are looked for."""
    root = os.environ.get("DETECTRON2_DATASETS")
    return "; DETECTRON2_DATASETS, the folder of the built-in data sets, is " + (
        f"set to {root}" if root else "not set, so ./datasets is taken"
    )


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of new objects, none of them in a cycle: the collector would take half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_json(name: str, path: str) -> Any:
    """The parsed annotation file; with a byte order mark or compressed by gzip too.

    Raises:
        ISONetError: it is missing or no json.
    """
    if not os.path.isfile(path):
        raise ISONetError(f"data set {name}: no annotation file {path}{hint()}")
    try:
        with open(path, "rb") as f:
            compressed = f.read(2) == b"\x1f\x8b"
        opened: Any = gzip.open if compressed else open
        with opened(path, "rt", encoding="utf-8-sig") as f:
            return json.load(f)
    except (ValueError, RecursionError) as error:
        raise ISONetError(f"data set {name}: {path} is no json ({error})") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ISONetError(f"data set {name}: {path} cannot be read: {reason}") from error


def read_regular(name: str, json_file: str) -> Regular:
    """The regular form of a COCO json, whatever is wrong with its annotations.

    Raises:
        ISONetError: it cannot be read or is not COCO's format.
    """
    with _without_collector():
        return regularize(read_json(name, json_file), f"data set {name}: {json_file}")


def _is_plain(name: str) -> bool:
    """Whether a registered set is what Detectron2 or this package makes of a COCO json."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None or metadata.get("image_root") is None:
        return False
    module = getattr(DatasetCatalog.data.get(name), "__module__", "")
    known = module == __name__ or module.startswith("detectron2.data.datasets")
    return known and metadata.get("evaluator_type", "coco") == "coco"


def register(name: str, json_file: str, image_root: str, make: Callable | None = None) -> None:
    """Register a COCO json whose records are its regular form.

    Args:
        name: a new one.
        json_file, image_root: annotations, and the folder of the photos.
        make: called before the files are read first, to make them.
    """
    DatasetCatalog.register(name, lambda: list(records_of(name)))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco")
    if make is not None:
        _make_first[name] = make


def make_files(name: str) -> None:
    """Make the files of a data set that is made when it is first used."""
    if name in _make_first:
        _make_first[name]()


def records_of(name: str) -> Sequence[dict]:
    """The records of a registered data set, regular where it is a COCO json."""
    data = load(name)
    return DatasetCatalog.get(name) if data is None else data.records


def load(name: str, parse: bool = True) -> DataSet | None:
    """The regular form of a registered data set; None for one that somebody's own function makes.

    Args:
        name: as in ``DATASETS.TRAIN``.
        parse: False takes only what this process or another of the machine has read already.

    Raises:
        ISONetError: it cannot be read, is not COCO's format, or training would fail on it.
    """
    if not _is_plain(name):
        return None
    if parse:
        make_files(name)
    metadata = MetadataCatalog.get(name)
    path, root = metadata.json_file, metadata.image_root
    key: tuple = (name, path, root)
    with contextlib.suppress(OSError):  # reading it will say so
        file = os.stat(path)
        key += (file.st_mtime_ns, file.st_size)
    if key not in _read:
        data = _shared(key)
        if data is None and not parse:
            return None
        _read[key] = data or _make(name, path, root)
        _name_classes(_read[key])
    return _read[key]


def _make(name: str, json_file: str, image_root: str) -> DataSet:
    with _without_collector():
        form = read_regular(name, json_file)
        if "minival" in json_file:  # COCO's own of 2014, whose repetitions do no harm
            del form.findings.counts["duplicate annotation id"]
        problem = form.findings.first_fatal()
        if problem:
            raise ISONetError(f"data set {name}: {json_file}: {problem}")
        for record in form.records:
            record["file_name"] = os.path.join(image_root, record["file_name"])
        records = Records.of(form.records)
    for line in form.findings.changes():
        logger.warning("data set %s: %s: %s", name, json_file, line)
    parts = {**vars(form), "records": records}
    return DataSet(**parts, name=name, json_file=json_file, image_root=image_root)


def _name_classes(data: DataSet) -> None:
    """What Detectron2's own loading adds to a data set's metadata."""
    metadata = MetadataCatalog.get(data.name)
    registered = metadata.get("thing_classes", data.class_names)
    if list(registered) != data.class_names:
        raise ISONetError(
            f"data set {data.name}: {data.json_file} has the classes {data.class_names}, "
            f"registered are {list(registered)}"
        )
    numbers = {category["id"]: i for i, category in enumerate(data.classes)}
    if metadata.get("thing_dataset_id_to_contiguous_id", numbers) == numbers:
        metadata.set(thing_classes=data.class_names, thing_dataset_id_to_contiguous_id=numbers)


def _shared_path(folder: str, key: tuple) -> str:
    return os.path.join(folder, hashlib.sha256(repr(key).encode()).hexdigest()[:24])


def _shared(key: tuple) -> DataSet | None:
    """What another process of this machine has read, as pages that all of them share."""
    path = _shared_path(os.environ.get(SHARED, ""), key)
    if SHARED not in os.environ or not os.path.isfile(f"{path}.pkl"):
        return None
    with open(f"{path}.pkl", "rb") as f:
        data: DataSet = pickle.load(f)
    data.records.data = np.load(f"{path}.npy", mmap_mode="r")
    return data


def share(folder: str) -> None:
    """Write what this process has read into a folder, for processes whose environment names it
    under :data:`SHARED`."""
    for key, data in _read.items():
        path = _shared_path(folder, key)
        np.save(f"{path}.npy", data.records.data)
        with open(f"{path}.pkl", "wb") as f:
            pickle.dump(replace(data, records=data.records.without_data()), f)


@contextlib.contextmanager
def shared(processes: int) -> Iterator[None]:
    """Processes that are started inside the block take what this one has read."""
    if processes < 2 or not _read:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="isonet_det-") as folder:
        share(folder)
        os.environ[SHARED] = folder
        try:
            yield
        finally:
            del os.environ[SHARED]


@contextlib.contextmanager
def shared_between_ranks(names: Iterable[str], local_rank: int) -> Iterator[None]:
    """The processes that a launcher has started take what the first of their machine reads.

    Args:
        names: of the data sets.
        local_rank: of this process on its machine.
    """
    with contextlib.ExitStack() as stack:
        folder = ""
        if local_rank == 0:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="isonet_det-"))
            for name in names:
                if name in DatasetCatalog:
                    load(name)
            share(folder)
        os.environ[SHARED] = comm.all_gather(folder)[comm.get_rank() - local_rank]
        try:
            yield
        finally:
            del os.environ[SHARED]
