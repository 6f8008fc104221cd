"""A table of the paper: its rows, what is compared, and the recipe of a row."""

from dataclasses import dataclass

from detectron2.config import CfgNode

from ..config import merge_options
from ..engine.trainer import Trainer
from ..model_zoo import get_config
from ..solver.schedule import epochs_to_iterations


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: of its runs' folders.
        network: as the report calls it.
        config: the ready config.
        paper: the paper's number per section of the table; None where it says "did not converge".
        options: ``KEY VALUE`` words that make the row out of the config.
    """

    name: str
    network: str
    config: str
    paper: tuple[float | None, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """What the report compares.

    Attributes:
        title: its heading.
        task: before the slash in the logged names.
        metrics: after it; the first one is the paper's.
    """

    title: str
    task: str
    metrics: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the logged number that stands beside the paper's."""
        return f"{self.task}/{self.metrics[0]}"


# What a run may choose for itself without straying from the recipe.
FREE_KEYS = frozenset(
    {
        "OUTPUT_DIR",
        "SEED",
        "VIS_PERIOD",
        "MODEL.DEVICE",
        "MODEL.CHANNELS_LAST",
        "MODEL.COMPILE",
        "MODEL.ISONET.CHECKPOINT_STAGES",
        "DATALOADER.NUM_WORKERS",
        "SOLVER.CHECKPOINT_PERIOD",
        "SOLVER.CHECKPOINT_KEEP",
        "SOLVER.ACCUMULATE_STEPS",
        "SOLVER.REFERENCE_WORLD_SIZE",
        "TEST.EVAL_PERIOD",
    }
)


@dataclass(frozen=True)
class Pace:
    """A published speed of training.

    Attributes:
        seconds: per iteration.
        images: per GPU and iteration.
        source: whose number it is, and of which network and machine.
    """

    seconds: float
    images: int
    source: str


@dataclass(frozen=True)
class Table:
    """A table of the paper: its rows, and how one is trained.

    Attributes:
        title: such as "Table 6".
        root: the default folder of the runs' folders.
        module: that trains a row: ``python -m MODULE``.
        trainer: the module's.
        rows: by name, in the paper's order.
        sections: of the report.
        digits: after the point, as in the paper.
        free_keys: what a run may choose for itself.
        train_images: of the recipe's training set, where its schedule is in epochs; else None.
        note: what the report has to say of the rows.
        seeds: that a row is trained with, unless others are asked for.
        pace: what the rows may be expected to take; None where nothing is published.
    """

    title: str
    root: str
    module: str
    trainer: type[Trainer]
    rows: dict[str, Row]
    sections: tuple[Section, ...]
    digits: int = 1
    free_keys: frozenset[str] = FREE_KEYS
    train_images: int | None = None
    note: str = ""
    seeds: tuple[int, ...] = (1,)
    pace: Pace | None = None

    def recipe(self, row: Row) -> CfgNode:
        """The config of a row, before it is scaled to other processes."""
        cfg = get_config(row.config)
        merge_options(cfg, list(row.options))
        if self.train_images is not None:
            epochs_to_iterations(cfg, self.train_images)
        return cfg
