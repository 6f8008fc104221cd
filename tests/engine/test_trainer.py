import json
import os
import signal
import time

import pytest
import torch
from runs import (
    At,
    PowerCut,
    assert_identical,
    cut,
    cut_and_resume,
    in_two_processes,
    outcome,
    run_cfg,
    train,
)
from support import (
    PENALTY,
    REPOSITORY,
    TINY,
    config,
    data_set,
    metrics,
    run_command,
    tool,
    tool_refuses,
)

from isonet_det import ISONetError
from isonet_det.cli import EXIT_STATUS
from isonet_det.data import checks, render_shapes
from isonet_det.engine.checkpointer import compare_recipes
from isonet_det.engine.trainer import Trainer

WORKERS = ["DATALOADER.NUM_WORKERS", 2, "SOLVER.ACCUMULATE_STEPS", 2, "SOLVER.IMS_PER_BATCH", 4]


@pytest.mark.parametrize(("options", "lost", "number", "stop_at"), [
    (PENALTY, 3, signal.SIGINT, 5),
    (WORKERS, 1, signal.SIGHUP, 4),  # before the first checkpoint
], ids=["penalty", "workers, micro-batches"])  # fmt: skip
def test_an_interrupted_run_ends_bitwise_like_a_whole_one(tmp_path, options, lost, number, stop_at):
    whole, broken, stopped = (run_cfg(tmp_path / n, *options) for n in ("whole", "cut", "stopped"))
    train(whole)
    expected = outcome(tmp_path / "whole")
    cut_and_resume(train, lost, broken)
    assert_identical(outcome(tmp_path / "cut"), expected)

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    with pytest.raises(SystemExit) as stop:
        train(stopped, False, At(stop_at, lambda trainer: os.kill(os.getpid(), number)))
    assert stop.value.code == EXIT_STATUS[number]
    assert (tmp_path / "stopped" / f"model_{stop_at:07d}.pth").is_file()
    train(stopped, True)
    assert_identical(outcome(tmp_path / "stopped"), expected)


def resumed(cfg):
    trainer = Trainer(cfg)
    trainer.resume_or_load(True)
    return trainer


def test_resume_passes_over_a_broken_checkpoint_and_says_why(tmp_path, caplog):
    cfg = run_cfg(tmp_path, "TEST.EVAL_PERIOD", "0")
    with pytest.raises(PowerCut):
        train(cfg, False, At(5, cut))
    newest = tmp_path / "model_0000003.pth"
    content = torch.load(newest)
    newest.write_bytes(newest.read_bytes()[:-100] + bytes(100))
    assert resumed(cfg).start_iter == 2
    assert str(newest) in caplog.text and "sha256" in caplog.text
    # A fused optimizer would read beyond the end of a momentum of another shape.
    optimizer = content["trainer"]["_trainer"]["optimizer"]
    place = next(p for p, s in optimizer["state"].items() if s["momentum_buffer"].numel() > 2)
    optimizer["state"][place]["momentum_buffer"] = torch.zeros(2)
    torch.save(content, newest)
    newest.with_name(f"{newest.name}.sha256").unlink()
    with pytest.raises(ISONetError, match=r"momentum_buffer of the shape \(2,\)"):
        resumed(cfg)


def test_the_latest_checkpoints_are_kept_and_a_copied_run_goes_on_where_it_was(tmp_path):
    cfg = run_cfg(tmp_path, "SOLVER.CHECKPOINT_KEEP", "2")
    train(cfg)
    files = {f"model_{name}.pth" for name in ("0000003", "0000005", "best", "final")}
    assert {p.name for p in tmp_path.glob("*.pth")} == files
    assert {p.name for p in tmp_path.glob("*.sha256")} == {f"{name}.sha256" for name in files}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    # cp -r loses the files' times, by which the newest was chosen once.
    for path in sorted(tmp_path.glob("model_*.pth"), reverse=True):
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
    checkpointer = Trainer(cfg).checkpointer
    assert checkpointer.newest_whole().endswith("model_final.pth")
    (tmp_path / "model_final.pth").unlink()
    assert checkpointer.newest_whole().endswith("model_0000005.pth")
    # A new run keeps what the one before left apart.
    first = (tmp_path / "metrics.json").read_text()
    train(cfg)
    assert (tmp_path / "previous-1" / "metrics.json").read_text() == first
    names = {path.name for path in (tmp_path / "previous-1").glob("*.pth")}
    assert names == files - {"model_final.pth"}
    assert len(metrics(tmp_path)) == len(first.splitlines())


def test_a_full_disk_leaves_the_older_checkpoint_and_says_so(tmp_path, monkeypatch):
    cfg = run_cfg(tmp_path, "TEST.EVAL_PERIOD", "0")
    save = torch.save

    def full(data, f):
        if data.get("iteration") == 3:
            f.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(data, f)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ISONetError, match=r"No space left .*\(whole: .*model_0000001\.pth\)"):
        train(cfg)
    assert {p.suffix for p in tmp_path.glob("model_*")} == {".pth", ".sha256"}
    monkeypatch.undo()
    assert resumed(cfg).start_iter == 2


def test_divergence_names_the_module(tmp_path):
    def blow_up(trainer):
        trainer.model.backbone.bottom_up.res3[0].conv1.weight.data.mul_(3e38)

    cfg = run_cfg(tmp_path, "SOLVER.CHECKPOINT_PERIOD", "100")
    named = "first not finite: the output of backbone.bottom_up.res3.0.conv1"
    with pytest.raises(ISONetError, match=rf"iteration 2:.*images \[.*{named}"):
        train(cfg, False, At(2, blow_up))
    assert not (tmp_path / "model_final.pth").exists()


def _cut_and_resume(rank, folder):
    whole, parts = (
        run_cfg(f"{folder}/{name}", "DATASETS.TEST", "()", *PENALTY) for name in ("whole", "parts")
    )
    train(whole)
    cut_and_resume(train, 3, parts)


def test_two_processes_resume_bitwise(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    in_two_processes(_cut_and_resume, tmp_path)
    assert_identical(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


def test_augmentation_at_test_time_of_what_has_none_is_refused():
    with pytest.raises(ISONetError, match="TTA is only supported on GeneralizedRCNN"):
        Trainer(config(
            "retinanet_risonet50_fpn.yaml", "MODEL.RESNETS.DEPTH", 18, "MODEL.WEIGHTS", "",
            "TEST.AUG.ENABLED", "True", "DATASETS.TRAIN", "('shapes_tiny',)", "DATASETS.TEST", "()",
        ))  # fmt: skip


def test_a_rate_and_a_batch_that_change_are_taken_up_and_said(tmp_path, caplog):
    short = ["DATASETS.TEST", "()", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0"]
    train(run_cfg(tmp_path, *short, "SOLVER.MAX_ITER", "2"))
    trainer = resumed(run_cfg(
        tmp_path, *short, "SOLVER.MAX_ITER", "4", "SOLVER.BASE_LR", "0.001",
        "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR",
        "SOLVER.IMS_PER_BATCH", "4",
    ))  # fmt: skip
    for change in ("BASE_LR was 0.04 and is 0.001 from here on", "IMS_PER_BATCH was 2 and is 4"):
        assert f"SOLVER.{change}" in caplog.text
    group = max(trainer.optimizer.param_groups, key=lambda g: g["weight_decay"])
    assert (group["lr"], group["weight_decay"]) == (0.001, 0.5)
    assert trainer.data_loader.batch_sampler.skip == 1  # of 4 images: those that are left
    # On another number of processes it would be another recipe.
    before = {"PROCESSES": 8, "SOLVER.IMS_PER_BATCH": 16}
    now = {"PROCESSES": 1, "SOLVER.IMS_PER_BATCH": 2}
    with pytest.raises(ISONetError, match=r"on 8 processes, not 1, with SOLVER.IMS_PER_BATCH 16"):
        compare_recipes(before, now, "model_1.pth")


TRAIN = (REPOSITORY / "tools" / "train_net.py", "--config-file", "configs/quickstart.yaml")


def test_trains_resumes_and_evaluates_from_any_directory(tmp_path, few_shapes):
    out = tmp_path / "out"
    data = ["--dataset", few_shapes]
    options = ["DATASETS.TRAIN", "('few',)", "DATASETS.TEST", "('few',)", "OUTPUT_DIR", out, *TINY]
    options += [*PENALTY, "MODEL.ISONET.SUMMARY_PERIOD", "3"]
    first = run_command(*TRAIN, *data, *options, "SOLVER.MAX_ITER", "3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    for name in ("model_final.pth", "config.yaml", "curves.png", "predictions.png"):
        assert (out / name).stat().st_size > 0
    assert list(out.glob("events.out.tfevents*"))
    trained, evaluated = metrics(out)
    assert trained["iteration"] == 2 and {"loss_ortho", "grad_norm", "hours"} <= set(trained)
    assert trained["isometry/srelu_bias_mean"] == pytest.approx(-1, abs=0.1)
    assert {"bbox/AP", "segm/AP"} <= set(evaluated)
    info = json.loads((out / "run.json").read_text())
    assert info["processes"] == 1 and {"torch", "detectron2", "commit", "device"} <= set(info)
    before, shown, after = first.stdout.partition("iteration 1 of 3: loss_cls")
    assert shown and len(before.splitlines()) <= 12 and "iteration 3 of 3" in after
    for words in ("few (8 photos, ", "frozen: nothing", "3 iterations of 2 images are"):
        assert words in before
    assert after.count("copypaste: Task: bbox") == 1 and "Average Precision" not in after
    assert f"isonet-det demo --run {out} " in after.splitlines()[-1]
    log = (out / "log.txt").read_text()
    assert "DEBUG: Model:" in log and "Running with full config" in log and "area=medium" in log
    assert all(line[9:] in log for line in first.stdout.splitlines() if "WARNING" not in line)
    assert "\x1b" not in log + first.stdout

    command = ["train_net.py", *TRAIN[1:], *data]
    more = tool(*command, "--resume", *options, "SOLVER.MAX_ITER", "5", cwd=tmp_path)
    assert "Starting training from iteration 3" in more

    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    weights = ["MODEL.WEIGHTS", out / "model_final.pth"]
    text = tool(*command, "--eval-only", *options, *weights, cwd=tmp_path)
    assert "copypaste: Task: bbox" in text
    assert all(path.read_bytes() == content for path, content in before.items())
    first, second = (f / "inference/coco_instances_results.json" for f in (out, out / "evaluation"))
    assert first.read_text() == second.read_text()


def test_a_photo_that_breaks_during_training_is_named(tmp_path, monkeypatch):
    """Past the size up to which photos are decoded beforehand, the loader finds it."""
    monkeypatch.setattr(checks, "MAX_DECODED", 0)
    render_shapes(tmp_path / "s", 4, 1)
    broken = tmp_path / "s" / "images" / "000001.png"
    broken.write_bytes(broken.read_bytes()[:500])
    line = tool_refuses(
        "train_net.py", "--config-file", "quickstart.yaml", "--dataset",
        data_set("breaks", tmp_path / "s"), "DATASETS.TRAIN", "('breaks',)", "DATASETS.TEST", "()",
        "OUTPUT_DIR", "out", *TINY, "SOLVER.MAX_ITER", "4", "DATALOADER.NUM_WORKERS", "1",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", cwd=tmp_path,
    )  # fmt: skip
    assert line.startswith("error: ") and str(broken) in line and "does not decode" in line
