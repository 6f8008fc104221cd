"""``TRACKING``: a run in Weights & Biases or MLflow."""

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..config import flatten
from ..errors import ISONetError
from ..files import write_file
from .run_info import collect

logger = logging.getLogger(__name__)

FILE = "tracking.json"  # the ids under which the trackers know the run
PICTURES = ("*.png", "report.html")
# An MLflow server that does not answer would hold the start for minutes.
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class WeightsAndBiases:
    """A run of wandb; WANDB_PROJECT, WANDB_MODE and the like are wandb's own."""

    def __init__(self, folder: str, identity: str | None, config: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "isonet_det"),
            name=os.path.basename(folder),
            dir=folder,
            id=identity,
            resume="allow",
            config=config,
        )
        self.run.define_metric("*", step_metric="iteration")
        self.identity = self.run.id

    def log(self, values: dict[str, float], iteration: int) -> None:
        self.run.log({**values, "iteration": iteration})

    def save(self, paths: Sequence[Path]) -> None:
        import wandb

        for path in paths:
            content = wandb.Image(str(path)) if path.suffix == ".png" else wandb.Html(str(path))
            self.run.log({path.stem: content})
        self.run.finish()


class MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are MLflow's own."""

    def __init__(self, folder: str, identity: str | None, config: dict[str, Any]) -> None:
        for key, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        self.client = MlflowClient()
        if identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "isonet_det")
            experiment = self.client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self.client.create_experiment(name)
            run = self.client.create_run(number, run_name=os.path.basename(folder))
            identity = run.info.run_id
            for key, value in config.items():
                self.client.log_param(identity, key, str(value)[:500])
        else:
            self.client.update_run(identity, "RUNNING")
        self.identity = identity

    def log(self, values: dict[str, float], iteration: int) -> None:
        for name, value in values.items():
            # What it takes in a name: classes are called anything.
            name = re.sub(r"[^\w.: /-]", "_", name, flags=re.ASCII)
            self.client.log_metric(self.identity, name, value, step=iteration)

    def save(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self.client.log_artifact(self.identity, str(path))
        self.client.set_terminated(self.identity)


TRACKERS: dict[str, type] = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def check_tracking(cfg: CfgNode) -> None:
    for name in cfg.TRACKING:
        if name not in {"tensorboard", *TRACKERS}:
            names = ", ".join(sorted({"tensorboard", *TRACKERS}))
            raise ISONetError(f"TRACKING: expected names among {names}, got {name!r}")


class TrackerWriter(EventWriter):
    """Hands what is logged to a tracker; one that fails is named once and left out."""

    def __init__(self, name: str, written: int, folder: str, *args: Any) -> None:
        self.name, self.written, self.folder = name, written, folder
        self.tracker: Any = None
        self.tracker = self._try(TRACKERS[name], folder, *args)

    def _try(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:  # networks, disks, servers: nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("TRACKING %s fails and is left out from here on: %s", self.name, reason)
            self.tracker = None

    def write(self) -> None:
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration > self.written:
                rows[iteration][name] = float(value)
        for iteration, values in sorted(rows.items()):
            if self.tracker is not None:
                self._try(self.tracker.log, values, iteration)
        self.written = max([self.written, *rows])

    def close(self) -> None:
        """Hand over the pictures and the report, and end the tracker's run."""
        paths = [p for pattern in PICTURES for p in sorted(Path(self.folder).glob(pattern))]
        if self.tracker is not None:
            self._try(self.tracker.save, paths)


def build_trackers(cfg: CfgNode, start_iter: int) -> list[EventWriter]:
    """A writer for each tracker of ``TRACKING``. A resumed run goes on in the same run of it."""
    names = [name for name in cfg.TRACKING if name in TRACKERS]
    if not names:
        return []
    folder = os.path.abspath(cfg.OUTPUT_DIR)
    file = Path(folder, FILE)
    known = json.loads(file.read_text()) if start_iter and file.is_file() else {}
    config = dict(flatten(yaml.safe_load(cfg.dump())))
    config.update({f"run.{key}": value for key, value in collect(1).items()})
    writers: list[EventWriter] = []
    for name in names:
        writer = TrackerWriter(name, start_iter - 1, folder, known.get(name), config)
        writers.append(writer)
        if writer.tracker is not None:
            known[name] = writer.tracker.identity
    write_file(file, json.dumps(known))
    return writers
