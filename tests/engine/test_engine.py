"""The commands of the README, small, in processes of their own."""

import json

import pytest
from support import COCO_MINI, PENALTY, REPOSITORY, TINY, run_command, run_tool

TRAIN = (REPOSITORY / "tools" / "train_net.py", "--config-file", "configs/quickstart.yaml")


def losses(folder):
    with open(folder / "metrics.json") as f:
        return [json.loads(line) for line in f]


def test_trains_resumes_and_evaluates_from_any_directory(tmp_path, few_shapes):
    data = ["--dataset", few_shapes]
    names = ["DATASETS.TRAIN", "('few',)", "DATASETS.TEST", "('few',)"]
    out = tmp_path / "out"
    options = [*names, "OUTPUT_DIR", out, *TINY, *PENALTY]
    first = run_command(*TRAIN, *data, *options, "SOLVER.MAX_ITER", "3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    for name in ("model_final.pth", "config.yaml", "curves.png", "predictions.png"):
        assert (out / name).stat().st_size > 0
    assert list(out.glob("events.out.tfevents*"))
    trained, evaluated = losses(out)
    assert trained["iteration"] == 2 and {"loss_ortho", "grad_norm", "hours"} <= set(trained)
    assert {"bbox/AP", "segm/AP"} <= set(evaluated)
    info = json.loads((out / "run.json").read_text())
    assert info["processes"] == 1 and {"torch", "detectron2", "commit", "device"} <= set(info)
    assert "No CUDA GPU" in first.stdout + first.stderr or "DEVICE: cpu" in first.stdout

    words = ["train_net.py", *TRAIN[1:], *data]
    more = run_tool(*words, "--resume", *options, "SOLVER.MAX_ITER", "5", cwd=tmp_path)
    assert more.returncode == 0, more.stderr[-3000:]
    assert "Starting training from iteration 3" in more.stdout + more.stderr

    weights = ["MODEL.WEIGHTS", out / "model_final.pth"]
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    evaluated = run_tool(*words, "--eval-only", *options, *weights, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert "Evaluation results for bbox" in evaluated.stdout + evaluated.stderr
    detections = [
        folder / "inference" / "coco_instances_results.json" for folder in (out, out / "evaluation")
    ]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert detections[0].read_text() == detections[1].read_text()


@pytest.mark.slow
def test_two_processes_train_and_mixed_precision_works(tmp_path, few_shapes):
    """Also python -m, and evaluation off."""
    result = run_command(
        "-m", "isonet_det.train", "--config-file", "quickstart.yaml", "--num-gpus", "2",
        "--dist-url", "auto", "--dataset", few_shapes, "DATASETS.TRAIN", "('few',)",
        "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out", *TINY, *PENALTY,
        "SOLVER.MAX_ITER", "2", "SOLVER.AMP.ENABLED", "True", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    row = losses(tmp_path / "out")[-1]
    assert row["iteration"] == 1 and row["loss_ortho"] >= 0
    assert (tmp_path / "out" / "model_final.pth").exists()


@pytest.mark.slow
def test_torchrun_starts_the_processes_and_stops_on_bad_input(tmp_path, few_shapes):
    data = ["--dataset", few_shapes, "DATASETS.TRAIN", "('few',)", "DATASETS.TEST", "()"]
    command = [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "isonet_det.train", "--config-file", "quickstart.yaml",
        *data, "OUTPUT_DIR", tmp_path / "out", *TINY,
    ]  # fmt: skip
    result = run_command(*command, "SOLVER.MAX_ITER", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == 2
    assert losses(tmp_path / "out")[-1]["iteration"] == 1
    result = run_command(*command, "SOLVER.MAX_ITR", "2", cwd=tmp_path)
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "did you mean SOLVER.MAX_ITER?" in line


def test_no_room_for_a_checkpoint(tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    from isonet_det import ISONetError
    from isonet_det.engine.set_up import check_output_dir

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(ISONetError, match="are free"):
        check_output_dir(str(tmp_path), 100)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_breaks_during_training_is_named(tmp_path, monkeypatch, workers):
    """Past the size up to which photos are decoded beforehand, the loader finds it."""
    from isonet_det.data import checks, render_shapes

    monkeypatch.setattr(checks, "MAX_DECODED", 0)
    render_shapes(tmp_path / "s", 4, 1)
    broken = tmp_path / "s" / "images" / "000001.png"
    broken.write_bytes(broken.read_bytes()[:500])
    result = run_tool(
        "train_net.py", "--config-file", "quickstart.yaml", "--dataset",
        f"s{workers}={tmp_path}/s/annotations.json:{tmp_path}/s/images", "DATASETS.TRAIN",
        f"('s{workers}',)", "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out", *TINY,
        "SOLVER.MAX_ITER", "4", "DATALOADER.NUM_WORKERS", str(workers),
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr[-2000:]
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and str(broken) in line and "does not decode" in line


@pytest.mark.slow
@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="coco_mini is not here")
def test_real_photos_train_and_evaluate(tmp_path):
    data = [
        word
        for split in ("train", "val")
        for word in (
            "--dataset",
            f"mini_{split}={COCO_MINI}/annotations/instances_{split}.json:{COCO_MINI}/{split}",
        )
    ]
    result = run_command(
        *TRAIN, *data, "DATASETS.TRAIN", "('mini_train',)", "DATASETS.TEST", "('mini_val',)",
        "MODEL.ROI_HEADS.NUM_CLASSES", "80", "OUTPUT_DIR", tmp_path / "out", *TINY,
        "SOLVER.MAX_ITER", "2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "bbox/AP" in losses(tmp_path / "out")[-1]
