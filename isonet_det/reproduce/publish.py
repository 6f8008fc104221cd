"""The trained detectors of a table's rows, for the model zoo."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..engine.publish import publish_detector, write_record
from .runs import Run


def publish_rows(runs: Sequence[Run], output_dir: str, zoo: Path, base_url: str = "") -> list[Path]:
    """Publish one detector per row that has finished runs of the recipe: of its seeds the one in
    the middle, whose model card has the spread of all.

    Args:
        runs: of one table; trial runs and unfinished ones are left out.
        output_dir: where the detectors' folders go.
        zoo: folder of detectors' records.
        base_url: the address under which ``output_dir`` will be found; "" for the local files.

    Returns:
        the records' paths.

    Raises:
        ISONetError: a file of a run cannot be read.
    """
    rows: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.is_the_recipe:
            rows[run.row.name].append(run)
    paths = []
    for name, group in rows.items():
        key = group[0].table.sections[0].key
        values = [run.results[key] for run in group]
        # The lower of two in the middle: the best seed alone would promise too much.
        middle = group[int(np.argsort(values, kind="stable")[(len(values) - 1) // 2])]
        detector = f"{group[0].table.title.lower().replace(' ', '')}-{name}"
        record = publish_detector(
            middle.folder,
            detector,
            output_dir,
            repeats=[run.folder for run in group if run is not middle],
        )
        if base_url:
            file = Path(record.source).name
            record = replace(record, source=f"{base_url.rstrip('/')}/{detector}/{file}")
        paths.append(write_record(record, f"{middle.folder}/config.yaml", zoo))
    return paths
