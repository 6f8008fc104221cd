"""What an evaluation in training does beside AP: losses, averaged weights, early stopping."""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data.stream import seed_everything, step_seed
from ..errors import ISONetError
from ..files import write_whole
from ..modeling.classifier import is_classifier

logger = logging.getLogger(__name__)


def _metrics(cfg: CfgNode) -> set[str]:
    """What an evaluation of a config will log; empty where nobody can tell."""
    if is_classifier(cfg):
        return {f"classification/{name}" for name in ("top1", "top5", "val_loss")}
    kinds = {MetadataCatalog.get(name).get("evaluator_type", "coco") for name in cfg.DATASETS.TEST}
    if kinds != {"coco"} or cfg.MODEL.META_ARCHITECTURE not in ("GeneralizedRCNN", "RetinaNet"):
        return set()
    wanted = {"bbox": True, "segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", ())
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AP-{name}" for name in classes)]
    return {f"{task}/{name}" for task, is_on in wanted.items() if is_on for name in names}


def check_metrics(cfg: CfgNode) -> None:
    """Check the names under which results are awaited, before a training that takes days."""
    metric, sets = cfg.SOLVER.EARLY_STOPPING.METRIC, cfg.DATASETS.TEST
    if metric and not (sets and cfg.TEST.EVAL_PERIOD):
        needed = "needs a DATASETS.TEST and a TEST.EVAL_PERIOD"
        raise ISONetError(f"SOLVER.EARLY_STOPPING.METRIC {metric} {needed}")
    known = {f"{name}/{n}" for name in sets for n in _metrics(cfg)} if sets[1:] else _metrics(cfg)
    awaited = [("SOLVER.EARLY_STOPPING.METRIC", metric.removeprefix("ema/"))]
    for entry in cfg.TEST.EXPECTED_RESULTS if sets else ():
        if len(entry) != 4:
            expected = "expected [task, metric, value, tolerance]"
            raise ISONetError(f"TEST.EXPECTED_RESULTS: {expected}, got {entry}")
        awaited.append(("TEST.EXPECTED_RESULTS", f"{entry[0]}/{entry[1]}"))
    for key, name in awaited:
        if name and known and name not in known and not name.startswith("val/"):
            names = ", ".join(sorted(n for n in known if "AP-" not in n))
            raise ISONetError(f"{key}: expected one of {names}, got {name!r}")


class Evaluation(EvalHook):
    """Detectron2's hook, once per iteration; it may end a run whose metric gets no better."""

    def __init__(
        self, period: int, function: Callable[[], Any], metric: str = "", patience: int = 1
    ) -> None:
        super().__init__(period, function)
        self.metric, self.patience = metric, patience
        self.best: float | None = None
        self.waited = 0  # evaluations since the best
        self.iterations = 0  # done at the latest evaluation

    def after_step(self) -> None:
        super().after_step()
        if self.metric and self.iterations == self.trainer.iter + 1:
            self._compare()

    def _do_eval(self) -> None:
        # In after_train the trainer's iter is max_iter.
        iterations = min(self.trainer.iter + 1, self.trainer.max_iter)
        if iterations != self.iterations:
            super()._do_eval()
            self.iterations = iterations

    def _compare(self) -> None:
        latest = {name: value for name, (value, _) in self.trainer.storage.latest().items()}
        latest = comm.all_gather(latest)[0]  # only the first process has results
        if self.metric not in latest:
            names = ", ".join(sorted(name for name in latest if "/" in name))
            raise ISONetError(f"SOLVER.EARLY_STOPPING.METRIC: {self.metric!r} is none of {names}")
        value = latest[self.metric] * (-1 if "loss" in self.metric else 1)
        value = -math.inf if math.isnan(value) else value  # nothing was found yet
        if self.best is None or value > self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = f"{self.metric} has not been better than {abs(self.best):.4g}"
            logger.info("%s for %d evaluations: the run ends here", best, self.waited)
            self.trainer.write_losses()
            self.trainer.max_iter = self.trainer.iter + 1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "iterations": self.iterations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
        if self.metric and self.waited >= self.patience:
            self.iterations = self.trainer.max_iter = state["iterations"]


class WeightAverage(HookBase):
    """An exponential moving average of the trained weights: those of ``model``."""

    def __init__(self, model: nn.Module, decay: float, output_dir: str) -> None:
        self.source, self.output_dir = model, output_dir
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.model: nn.Module = self.averaged.module

    def before_train(self) -> None:
        if not self.averaged.n_averaged:
            self.averaged.update_parameters(self.source)

    def after_step(self) -> None:
        self.averaged.update_parameters(self.source)

    def after_train(self) -> None:
        if comm.is_main_process():
            classes = getattr(self.source, "classes", None)
            content = {"model": self.model.state_dict(), "classes": classes}
            with write_whole(os.path.join(self.output_dir, "ema_final.pth")) as f:
                torch.save(content, f)

    def state_dict(self) -> dict[str, Any]:
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averaged.load_state_dict(state)


@torch.no_grad()
def validation_losses(
    model: nn.Module, batches: Iterable[list[dict[str, Any]]]
) -> dict[str, float]:
    """The detector's own losses, without loss_ortho, as means over all processes' photos."""
    training = model.training
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    sums: dict[str, float] = defaultdict(float)
    count = 0
    with EventStorage():  # Detectron2's heads log into one
        for i, batch in enumerate(batches):
            # Proposals are sampled alike in every evaluation; training seeds each of its steps.
            seed_everything(step_seed(0, comm.get_rank(), i, 0))
            losses = model.forward(batch)  # without the hook of loss_ortho
            for name, loss in losses.items():
                sums[name] += loss.item() * len(batch)
            count += len(batch)
    model.train(training)
    parts = comm.all_gather((sums, count))
    total = max(sum(count for _, count in parts), 1)
    names = {name: None for values, _ in parts for name in values}
    means = {name: sum(values[name] for values, _ in parts) / total for name in names}
    return {**means, "total_loss": sum(means.values())}
