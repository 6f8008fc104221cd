"""``TRACKING``: a run's metrics, config and pictures in Weights & Biases or MLflow, beside
``metrics.json`` and Detectron2's TensorBoard files."""

import importlib.util
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ..config import flatten
from ..errors import ISONetError
from ..files import write_whole
from .hooks import LOG_PERIOD
from .run_info import collect

logger = logging.getLogger(__name__)

FILE = "tracking.json"  # the ids under which the trackers know the run
PICTURES = ("*.png", "report.html")


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
            self.client.log_metric(self.identity, name, value, step=iteration)

    def save(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self.client.log_artifact(self.identity, str(path))
        self.client.set_terminated(self.identity)


TRACKERS: dict[str, Callable[..., Any]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def check_tracking(cfg: CfgNode) -> None:
    """Check that the trackers of a config are known and installed.

    Raises:
        ISONetError: one is not.
    """
    names = {"tensorboard", *TRACKERS}
    for name in cfg.TRACKING:
        if name not in names:
            raise ISONetError(
                f"TRACKING: expected names among {', '.join(sorted(names))}, got {name!r}"
            )
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise ISONetError(f"TRACKING {name}: the package is not installed; pip install {name}")


class Tracking(HookBase):
    """Hands what is logged to the trackers of ``TRACKING``. One that fails is named once and left
    out; the run goes on. A resumed run goes on in the same run of the tracker.

    Args:
        cfg: the full config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, self.folder = cfg, os.path.abspath(cfg.OUTPUT_DIR)
        self.trackers: dict[str, Any] = {}
        self._written = -1

    def _try(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:  # networks, disks, servers: nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("TRACKING %s fails and is left out from here on: %s", name, reason)
            self.trackers.pop(name, None)
            return None

    def before_train(self) -> None:
        names = [name for name in self.cfg.TRACKING if name in TRACKERS]
        if not names:
            return
        file = os.path.join(self.folder, FILE)
        identities: dict[str, str] = {}
        if self.trainer.start_iter and os.path.isfile(file):
            identities = json.loads(Path(file).read_text())
        config = dict(flatten(yaml.safe_load(self.cfg.dump())))
        config.update({f"run.{key}": value for key, value in collect(1).items()})
        for name in names:
            create = TRACKERS[name]
            tracker = self._try(name, create, self.folder, identities.get(name), config)
            if tracker is not None:
                self.trackers[name], identities[name] = tracker, tracker.identity
        with write_whole(file) as f:
            f.write(json.dumps(identities).encode())
        self._written = self.trainer.start_iter - 1

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % LOG_PERIOD == 0:
            self._write()

    def after_train(self) -> None:
        self._write()

    def _write(self) -> None:
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in self.trainer.storage.latest().items():
            if iteration > self._written:
                rows[iteration][name] = float(value)
        for iteration, values in sorted(rows.items()):
            for name, tracker in list(self.trackers.items()):
                self._try(name, tracker.log, values, iteration)
        self._written = max([self._written, *rows])

    def finish(self) -> None:
        """Hand over the pictures and the report, and end the trackers' runs."""
        paths = [p for pattern in PICTURES for p in sorted(Path(self.folder).glob(pattern))]
        for name, tracker in list(self.trackers.items()):
            self._try(name, tracker.save, paths)
