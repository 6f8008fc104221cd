"""What is known of the published weight files: one record a file, in model_zoo/."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import ISONetError
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


def records_dir() -> Path:
    """The folder of the records: inside the installed package, or in a clone."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "zoo_records"
    return inside if inside.is_dir() else package.parent / "model_zoo"


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
        near = difflib.get_close_matches(name, all_records, 1, 0.0)[0]
        raise ISONetError(f"the model zoo has no {name}; did you mean {near}?")
    return all_records[name]


def get_checkpoint(name: str) -> str:
    """Local path of a zoo entry's weight file (``R-ISONet-50-dropout``), downloaded if needed.

    Raises:
        ISONetError: no such entry, or its download failed (:func:`fetch`).
    """
    record = get_record(name)
    return str(fetch(record.source, record.file_name, record.sha256, record.bytes))
