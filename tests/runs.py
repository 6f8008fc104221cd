"""Training runs: whole ones, ones that are cut and go on, ones of two processes."""

import contextlib
import json
import multiprocessing
import subprocess
import sys
from unittest import mock

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from support import PENALTY, REPOSITORY, TINY, environment, metrics, small_cfg
from torch import distributed

from isonet_det.engine.trainer import Trainer

ITERATIONS = 7


class At(HookBase):
    """Does something before an iteration."""

    def __init__(self, iteration, action):
        self.iteration, self.action = iteration, action

    def before_step(self):
        if self.trainer.iter == self.iteration:
            self.action(self.trainer)


class PowerCut(BaseException):
    """Ends a run without any of its own code."""


def cut(trainer):
    raise PowerCut


def run_cfg(folder, *options):
    return small_cfg(
        "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.STEPS", "(4,)",
        "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "3", "SEED", "4", *options,
    )  # fmt: skip


@contextlib.contextmanager
def without_pictures():
    """Runs draw nothing: pictures take longer than all the rest of a small one."""
    with contextlib.ExitStack() as stack:
        for module in ("loop", "trainer"):
            stack.enter_context(mock.patch(f"isonet_det.engine.{module}.try_to_draw"))
        yield


def run(trainer, resume=False, *hooks, pictures=False):
    trainer.register_hooks(list(hooks))
    trainer.resume_or_load(resume)
    with contextlib.nullcontext() if pictures else without_pictures():
        trainer.train()


def train(cfg, resume=False, *hooks, pictures=False):
    run(Trainer(cfg), resume, *hooks, pictures=pictures)


def cut_and_resume(train, iteration, *arguments):
    """Training that loses its power before ``iteration``, and goes on."""
    with pytest.raises(PowerCut):
        train(*arguments, False, At(iteration, cut))
    train(*arguments, True)


def outcome(folder):
    """What must not depend on interruptions."""
    final = torch.load(folder / "model_final.pth")
    clocks = ("time", "data_time", "eta_seconds", "hours", "max_mem_mb")
    rows = [{k: v for k, v in row.items() if k not in clocks} for row in metrics(folder)]
    return final["model"], final["trainer"]["_trainer"]["optimizer"], rows


def assert_identical(found, expected):
    for name, tensor in expected[0].items():
        assert torch.equal(found[0][name], tensor), name
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
    assert json.dumps(found[2]) == json.dumps(expected[2])  # NaN included


def _in_process(rank, work, folder, arguments, kind):
    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(rank)
    backend, meeting = "nccl" if kind == "cuda" else "gloo", f"file://{folder}/meet"
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=2)
    comm.create_local_process_group(2)
    work(rank, folder, *arguments)
    distributed.destroy_process_group()


def in_two_processes(work, folder, *arguments, kind="cpu"):
    """Run ``work(rank, folder, *arguments)`` in two processes that are a process group."""
    # Forked from a process that has imported everything once.
    multiprocessing.set_forkserver_preload(["isonet_det.engine.trainer"])
    torch.multiprocessing.start_processes(
        _in_process, (work, str(folder), arguments, kind), nprocs=2, start_method="forkserver"
    )


def start_training(folder, few_shapes, *options, iterations=60):
    """tools/train_net.py as a process, which evaluates at the end and leaves FOLDER.log."""
    command = [
        sys.executable, "-W", "ignore", REPOSITORY / "tools" / "train_net.py", "--config-file",
        "quickstart.yaml", "--resume", "--dataset", few_shapes, *options, "DATASETS.TRAIN",
        "('few',)", "DATASETS.TEST", "('few',)", "OUTPUT_DIR", folder, *TINY, *PENALTY,
        "SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", "3",
        "TEST.EVAL_PERIOD", "20", "SEED", "2", "DATALOADER.NUM_WORKERS", "2",
    ]  # fmt: skip
    log = open(f"{folder}.log", "a")
    return subprocess.Popen(
        [str(word) for word in command], stdout=log, stderr=log, env=environment(),
        start_new_session=True,  # a process group of its own, loader workers included
    )  # fmt: skip
