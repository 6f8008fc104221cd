"""What is known of the published weight files: one record a file, in model_zoo/."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import ISONetError
from ..files import sha256_of
from .download import fetch


@dataclass(frozen=True)
class Record:
    """One weight file. ``sha256`` may hold only the first digits; None: not known."""

    name: str
    network: str
    depth: int
    dropout: bool
    top1: float
    top1_source: str
    channel_order: str
    pixel_mean: list[float]
    pixel_std: list[float]
    licence: str
    source: str
    bytes: int | None
    sha256: str | None

    @property
    def file_name(self) -> str:
        """Name in the cache folder."""
        return f"{self.name}.pth"


@dataclass(frozen=True)
class DetectorRecord:
    """A trained detector of the zoo; its config is NAME.yaml beside the record.

    Attributes:
        metrics: AP by name, percents.
        source: address of the weights, or a local path.
    """

    name: str
    network: str
    dataset: str
    metrics: dict[str, float]
    licence: str
    source: str
    bytes: int
    sha256: str

    @property
    def config_file(self) -> Path:
        """The whole config of its training."""
        return detectors_dir() / f"{self.name}.yaml"


def records_dir() -> Path:
    """The folder of the records: inside the installed package, or in a clone."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "zoo_records"
    return inside if inside.is_dir() else package.parent / "model_zoo"


def detectors_dir() -> Path:
    """The folder of the detectors' records."""
    return records_dir() / "detectors"


def detector_records() -> dict[str, DetectorRecord]:
    """Every trained detector's record by its name."""
    contents = [json.loads(path.read_text()) for path in sorted(detectors_dir().glob("*.json"))]
    return {content["name"]: DetectorRecord(**content) for content in contents}


def records() -> dict[str, Record]:
    """Every record by its name, ordered by network, depth and dropout."""
    contents = [json.loads(path.read_text()) for path in records_dir().glob("*.json")]
    order = sorted(
        (Record(**content) for content in contents), key=lambda r: (r.network, r.depth, r.dropout)
    )
    return {record.name: record for record in order}


def get_record(name: str) -> Record:
    """The record of a weight file.

    Raises:
        ISONetError: there is none of that name.
    """
    all_records = records()
    if name not in all_records:
        names = [*all_records, *detector_records()]
        near = difflib.get_close_matches(name, names, 1, 0.0)[0]
        raise ISONetError(f"the model zoo has no {name}; did you mean {near}?")
    return all_records[name]


def get_checkpoint(name: str) -> str:
    """Local path of a zoo entry's weight file (``R-ISONet-50-dropout``), downloaded if needed.

    Raises:
        ISONetError: no such entry, or its download failed (:func:`fetch`).
    """
    detector = detector_records().get(name)
    if detector is not None:
        return _detector_file(detector)
    record = get_record(name)
    return str(fetch(record.source, record.file_name, record.sha256, record.bytes))


def _detector_file(record: DetectorRecord) -> str:
    if "://" in record.source:
        return str(fetch(record.source, f"{record.name}.pth", record.sha256, record.bytes))
    if not Path(record.source).is_file():
        raise ISONetError(f"the weights of {record.name} are not at {record.source}")
    digest = sha256_of(record.source)
    if digest != record.sha256:
        raise ISONetError(f"{record.source} has sha256 {digest}, expected {record.sha256}")
    return record.source
