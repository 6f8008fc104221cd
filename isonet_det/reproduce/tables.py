"""The tables of the paper, and one of cells: rows, what is compared, and the recipe of a row."""

import csv
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from ..config import merge_options
from ..engine.pretrainer import PretrainTrainer
from ..engine.trainer import Trainer
from ..model_zoo import get_config
from ..solver.schedule import epochs_to_iterations, scale_to_processes

# What a run may choose for itself without straying from the recipe.
FREE_KEYS = frozenset(
    {
        "OUTPUT_DIR", "SEED", "VIS_PERIOD", "MODEL.DEVICE", "MODEL.CHANNELS_LAST", "MODEL.COMPILE",
        "MODEL.ISONET.CHECKPOINT_STAGES", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD",
        "SOLVER.CHECKPOINT_KEEP", "SOLVER.ACCUMULATE_STEPS", "SOLVER.REFERENCE_WORLD_SIZE",
        "TEST.EVAL_PERIOD", "PRETRAIN.ROOT", "PRETRAIN.EVAL_EPOCHS",
        "INPUT.MASK_FORMAT",  # follows from the data
    }
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row: its folders' name, network, config and ``KEY VALUE`` words; the paper's numbers.

    A table that is not of the paper has no such numbers.
    """

    name: str
    network: str
    config: str
    options: tuple[str, ...]
    paper: tuple[float | None, ...]


def _rows(table: str) -> dict[str, Row]:
    """Of rows.csv, in the paper's order."""
    with open(Path(__file__).with_name("rows.csv")) as f:
        lines = [line for line in csv.DictReader(f) if line.pop("table") == table]
    rows = {}
    for line in lines:
        paper = tuple(None if v == "-" else float(v) for v in line.pop("paper").split())
        options = tuple(line.pop("options").split())
        rows[line["name"]] = Row(**line, options=options, paper=paper)
    return rows


@dataclass(frozen=True)
class Table:
    """A table, and how its rows are trained: ``python -m MODULE`` into ``root``."""

    title: str
    root: str
    module: str
    trainer: type[Trainer]
    rows: dict[str, Row]
    sections: dict[str, tuple[str, ...]]  # of the report: logged metrics, the paper's first
    digits: int = 1  # after the point, as in the paper
    train_images: int | None = None  # where the schedule is in epochs
    note: str = ""
    seeds: tuple[int, ...] = (1,)
    gpus: int = 8  # per machine
    pace: tuple[float, int, str] | None = None  # seconds for so many images per GPU, and whose

    @property
    def metrics(self) -> list[str]:
        """Of all sections, the one that decides first."""
        return [metric for section in self.sections.values() for metric in section]

    def recipe(self, row: Row, processes: int = 0, steps: int = 1) -> CfgNode:
        """The config of a row, scaled to ``processes``; 0: not.

        ``steps`` micro-batches are those of a row that names none.
        """
        cfg = get_config(row.config)
        merge_options(cfg, ["SOLVER.ACCUMULATE_STEPS", str(steps), *row.options])
        if self.train_images is not None:
            epochs_to_iterations(cfg, self.train_images)
        return scale_to_processes(cfg, processes) if processes else cfg


def _ap(task: str) -> tuple[str, ...]:
    return tuple(f"{task}/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"))


TABLE6 = Table(
    title="Table 6",
    root="output/table6",
    module="isonet_det.train",
    trainer=Trainer,
    rows=_rows("table6"),
    sections={"Boxes": _ap("bbox"), "Masks": _ap("segm")},
    # The paper's gain at 50 layers is 0.3 box AP; published runs that differ in their seed alone
    # are 0.1 apart.
    seeds=(1, 2, 3),
    pace=(0.471, 2, "mask_rcnn_R_50_DC5_1x in Detectron2's model zoo, ResNet-50 on 8 V100 GPUs"),
)
IMAGENET = Table(
    title="ImageNet, Tables 1 to 5 and 7",
    root="output/imagenet",
    module="isonet_det.pretrain",
    trainer=PretrainTrainer,
    rows=_rows("imagenet"),
    sections={"Top-1": ("classification/top1", "classification/top5")},
    digits=2,
    train_images=1281167,
    note="What the paper leaves open, and which rows its tables share: docs/pretraining.md.",
)
CELLS = Table(
    title="Blood cells",
    root="output/cells",
    module="isonet_det.train",
    trainer=Trainer,
    rows=_rows("cells"),
    sections={"Boxes": tuple(f"bbox/AP{of}" for of in ("", "50", "-WBC", "-RBC", "-Platelets"))},
    seeds=(1, 2, 3),
    gpus=1,
    note="Where the data are from, and what was found: docs/bccd.md.",
)
