import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from runs import At, assert_identical, outcome, run_cfg, start_training, train
from support import PENALTY, small_cfg

from isonet_det.cli import exit_with_one_line


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, few_shapes):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start_training(whole, few_shapes).wait() == 0
    moments = random.Random(0)
    kills = 0
    while kills < 20:
        process = start_training(cut, few_shapes)
        try:
            # From the imports to a second or two of training: some of the kills fall into a
            # checkpoint, some into an evaluation.
            assert process.wait(moments.uniform(7, 14)) == 0
            (cut / "model_final.pth").unlink()  # done too early: take the end back
            (cut / "model_final.pth.sha256").unlink()
        except subprocess.TimeoutExpired:
            number = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            process.send_signal(number)
            status = process.wait(60)
            assert status in (-number, 75, 130, 0), (number, status)
            kills += 1
    assert start_training(cut, few_shapes).wait() == 0
    assert_identical(outcome(cut), outcome(whole))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["parent", "every process"])
def test_sigterm_to_several_processes_saves_and_can_go_on(tmp_path, few_shapes, to):
    """SLURM and ``kill -TERM -GROUP`` tell every process, and the parent hands it on."""
    out, log = tmp_path / "out", tmp_path / "out.log"

    def start():
        two = ("--num-gpus", "2", "--dist-url", "auto")
        return start_training(out, few_shapes, *two, iterations=30)

    process = start()
    while not (out / "model_0000005.pth").exists():
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.2)
    if to == "parent":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGTERM)
    # SLURM's default between SIGTERM and SIGKILL.
    assert process.wait(30) == 75, log.read_text()[-3000:]
    assert start().wait() == 0
    assert (out / "model_final.pth").exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_memory_and_file_handles_do_not_grow(tmp_path):
    memory, handles = [], []

    class Usage(HookBase):
        def after_step(self):
            if self.trainer.iter % 50 == 49:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
                handles.append(len(os.listdir("/proc/self/fd")))

    cfg = small_cfg(
        "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", "500", "SOLVER.CHECKPOINT_PERIOD", "50",
        "TEST.EVAL_PERIOD", "100", *PENALTY,
    )  # fmt: skip
    train(cfg, False, Usage())
    assert max(memory[-3:]) - min(memory[2:5]) < 60, memory  # MiB
    assert handles[-1] <= handles[2] + 1
    assert not torch.multiprocessing.active_children()


def test_a_dead_worker_is_an_error_and_no_hang(tmp_path, capsys):
    def kill_worker(trainer):
        for worker in trainer._trainer._data_loader_iter._workers:
            os.kill(worker.pid, signal.SIGKILL)

    cfg = run_cfg(tmp_path, "DATALOADER.NUM_WORKERS", "1", "DATASETS.TEST", "()")
    with pytest.raises(SystemExit) as stop:
        exit_with_one_line(train, cfg, False, At(2, kill_worker))
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: DataLoader worker") and "--resume" in line
