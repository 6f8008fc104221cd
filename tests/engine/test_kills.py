import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from runs import At, run_cfg, start_training, train
from support import PENALTY, small_cfg

from isonet_det.cli import exit_with_one_line


@pytest.mark.slow
@pytest.mark.parametrize("to", ["parent", "every process"])
def test_sigterm_to_several_processes_saves_and_can_go_on(tmp_path, few_shapes, to):
    """SLURM and ``kill -TERM -GROUP`` tell every process, and the parent hands it on."""
    out, log = tmp_path / "out", tmp_path / "out.log"
    start = partial(start_training, out, few_shapes, "--num-gpus", "2", iterations=30)
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
