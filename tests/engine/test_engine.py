import json
import shutil
from collections import namedtuple

import pytest
from support import PENALTY, REPOSITORY, TINY, data_set, metrics, run_command, tool, tool_refuses

from isonet_det import ISONetError
from isonet_det.data import checks, render_shapes
from isonet_det.engine.set_up import check_output_dir

TRAIN = (REPOSITORY / "tools" / "train_net.py", "--config-file", "configs/quickstart.yaml")


@pytest.fixture
def few(few_shapes):
    return ["--dataset", few_shapes, "DATASETS.TRAIN", "('few',)"]


def test_trains_resumes_and_evaluates_from_any_directory(tmp_path, few):
    out = tmp_path / "out"
    data, options = few[:2], [*few[2:], "DATASETS.TEST", "('few',)", "OUTPUT_DIR", out, *TINY]
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


def test_no_room_for_a_checkpoint(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(ISONetError, match="are free"):
        check_output_dir(str(tmp_path), 100)


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
