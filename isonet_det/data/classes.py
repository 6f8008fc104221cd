"""Class lists: of data sets, models and checkpoints, compared by name."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from torch import nn

from ..errors import ISONetError
from .sets import DataSet, Records, load

logger = logging.getLogger(__name__)


def class_numbers(
    names: Sequence[str], expected: Sequence[str], what: str, reference: str
) -> list[int | None]:
    """The places of class names in another list of class names.

    Args:
        found: names, in order.
        expected: names, in order.
        what, reference: what has the ones and what the others, for messages.

    Returns:
        per name of ``found`` its place in ``expected``, None where it is not in there.
    """
    if list(names) == list(expected):
        return list(range(len(names)))
    numbers = [expected.index(name) if name in expected else None for name in names]
    absent = [name for name in expected if name not in names]
    if absent:
        logger.warning("%s has not all classes of %s: %s is missing", what, reference, absent)
    elif None not in numbers:
        logger.warning(
            "%s has the classes of %s in another order: they are mapped by name", what, reference
        )
    return numbers


def map_classes(data: DataSet, expected: Sequence[str], reference: str) -> Records:
    """The records of a data set with the class numbers of another list of classes.

    Args:
        data: the set.
        expected: class names, in order.
        reference: what has them, for messages.

    Raises:
        ISONetError: it has annotations of a class that is not among them.
    """
    what = f"data set {data.name}"
    numbers = class_numbers(data.class_names, expected, what, reference)
    if None in numbers:
        classes = {
            a["category_id"]
            for record in data.records
            for key in ("annotations", "left_out")
            for a in record.get(key, ())
        }
        extra = [n for i, n in enumerate(data.class_names) if numbers[i] is None and i in classes]
        if extra:
            absent = [name for name in expected if name not in data.class_names]
            raise ISONetError(
                f"{what} ({data.json_file}) has the classes {_some(extra)} that {reference} has "
                f"not, and not its {_some(absent)}; give the same names to the same classes"
            )
    if numbers == list(range(len(numbers))):
        return data.records
    return data.records.with_classes([-1 if n is None else n for n in numbers])


def _some(names: Sequence[Any], count: int = 8) -> str:
    return f"{list(names[:count])}{' and more' if len(names) > count else ''}"


def class_records(name: str) -> list[dict[str, Any]] | None:
    """Id and name of each class of a registered data set; None where nobody knows."""
    if name not in DatasetCatalog:
        return None
    data = load(name)
    return named_classes(MetadataCatalog.get(name)) if data is None else data.classes


def named_classes(metadata: Metadata) -> list[dict[str, Any]] | None:
    """Id and name of each class that a data set's metadata names; None where it names none."""
    names = metadata.get("thing_classes")
    ids = {n: i for i, n in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
    return names and [{"id": ids.get(i, i), "name": name} for i, name in enumerate(names)]


def names_of_model(model: nn.Module) -> list[str] | None:
    """The class names that a model's checkpoint or training data gave it, in order."""
    records = getattr(model, "classes", None)
    return None if records is None else [record["name"] for record in records]


def check_test_classes(cfg: CfgNode, model: nn.Module) -> None:
    """Compare the classes of a trained model with those of the test sets.

    Raises:
        ISONetError: a test set has annotations of other classes.
    """
    names = names_of_model(model)
    if names is None and cfg.DATASETS.TEST and cfg.DATASETS.TEST[0] in DatasetCatalog:
        logger.info("The weights name no classes: they are taken for those of the test set.")
    for name in cfg.DATASETS.TEST:
        data = load(name) if names else None
        if data is not None and names:
            map_classes(data, names, "the checkpoint")
