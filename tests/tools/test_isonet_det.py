import contextlib
import json
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from support import TINY, metrics, run_tool, small_cfg, tool, tool_refuses

from isonet_det import ISONetError
from isonet_det.__main__ import COMMANDS, main
from isonet_det.config import set_number_of_classes
from isonet_det.data.splitting import split_photos
from isonet_det.engine.run_info import describe
from isonet_det.engine.trainer import Trainer


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_help_shows_an_example_and_runs_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["isonet-det", name, "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr().out
    assert not stop.value.code and shown.startswith(f"usage: isonet-det {name} ")
    assert f"  isonet-det {name} " in shown.partition("example")[2] and not list(tmp_path.iterdir())


def test_the_list_of_commands_is_shown_and_completed(monkeypatch, capsys):
    for words in ([], ["completion"]):
        monkeypatch.setattr(sys, "argv", ["isonet-det", *words])
        with contextlib.suppress(SystemExit):
            main()
        assert set(COMMANDS) - {"check", "completion"} <= set(capsys.readouterr().out.split())


def content(photos, classes):
    """Photo i has an object of each class whose period divides i."""
    marks = [(i, c) for i in range(photos) for c, period in enumerate(classes) if i % period == 0]
    box = {"bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    size = {"height": 9, "width": 9}
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", **size} for i in range(photos)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(len(classes))],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, **box} for k, (i, c) in enumerate(marks, 1)
        ],
    }


@pytest.mark.parametrize("seed", range(2))
def test_a_split_has_every_class_in_both_parts(seed):
    whole = content(40, [1, 7, 20, 39])
    parts = split_photos(whole, 0.2, seed)
    assert parts == split_photos(whole, 0.2, seed) != split_photos(whole, 0.2, seed + 1)
    train, val = ({i["id"] for i in part["images"]} for part in parts)
    assert len(val) == 8 and train.isdisjoint(val) and len(train | val) == 40
    for part, photos in zip(parts, (train, val), strict=True):
        assert {a["category_id"] for a in part["annotations"]} == {0, 1, 2, 3}
        assert {a["image_id"] for a in part["annotations"]} == photos
    assert sum(len(part["annotations"]) for part in parts) == len(whole["annotations"])


def test_a_split_overwrites_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "all.json").write_text(json.dumps(content(10, [1])))
    words = ["isonet-det", "split", str(tmp_path / "all.json")]
    monkeypatch.setattr(sys, "argv", words)
    main()
    assert len(json.loads((tmp_path / "all_val.json").read_text())["images"]) == 2
    (tmp_path / "all_train.json").unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()
    assert "all_val.json is there already" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def forget(name):
    """As a new process has."""
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_own_photos_are_trained_on_and_evaluated(few_shapes, tmp_path):
    """Their number of classes is the data's, and then the checkpoint's; the report finds them."""
    photos = few_shapes.partition("=")[2]
    quick = ["--config-file", "quickstart.yaml", "--val"]
    score = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    options = [*TINY, *score, "SOLVER.MAX_ITER", "1", "TEST.REPORT", "False", "OUTPUT_DIR", "run"]
    train = ["train_net.py", *quick, photos, "--train", photos, *options]
    text = tool(*train, cwd=tmp_path)
    assert "own_train (8 photos, " in text and "own_val (8 photos, " in text
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "- own_train" in config and "NUM_CLASSES: 4" in config and "CLASSES: -1" not in config
    assert "bbox/AP" in metrics(tmp_path / "run")[-1]
    report = tmp_path / "run" / "report.html"
    tool("report.py", "run", "--score", "0", cwd=tmp_path)
    assert "data set own_val, 8 images" in report.read_text()
    # An evaluation on other photos, in the run's folder, is reported with those.
    json_file, _, root = photos.partition(":")
    content = json.loads(open(json_file).read())
    content["images"] = content["images"][:3]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "three.json").write_text(json.dumps(content))
    forget("own_val")
    weights = ["MODEL.WEIGHTS", "run/model_final.pth"]
    text = tool("train_net.py", *quick, f"three.json:{root}", "--eval-only", *options, *weights,
                cwd=tmp_path)  # fmt: skip
    assert "Evaluation results for own_val" in text
    forget("own_val")
    (tmp_path / "elsewhere").mkdir()
    tool("report.py", "../run", "--score", "0", cwd=tmp_path / "elsewhere")
    assert "data set own_val, 3 images" in report.read_text()
    forget("own_val")
    line = tool_refuses(*train, "MODEL.ROI_HEADS.NUM_CLASSES", "2", cwd=tmp_path)
    assert "own_train has 4 classes but MODEL.ROI_HEADS.NUM_CLASSES is 2" in line


def test_a_schedule_of_hundreds_of_epochs_is_warned_of(caplog):
    for iterations, warned in ((50, False), (500, True)):
        caplog.clear()
        cfg = small_cfg("DATASETS.TRAIN", "('shapes_tiny',)", "SOLVER.MAX_ITER", iterations)
        describe(Trainer(cfg))
        assert ("500.0 epochs of 2 photos: that is long; 50 are 50 epochs" in caplog.text) == warned


def test_a_number_of_classes_that_nobody_knows_is_asked_for():
    cfg = small_cfg("MODEL.ROI_HEADS.NUM_CLASSES", -1, "MODEL.RETINANET.NUM_CLASSES", 5)
    with pytest.raises(ISONetError, match="the weights name no classes"):
        set_number_of_classes(cfg, 0)
    made = set_number_of_classes(cfg, 3, known=False)
    assert (made.MODEL.ROI_HEADS.NUM_CLASSES, made.MODEL.RETINANET.NUM_CLASSES) == (3, 5)


def test_the_tool_writes_curve_numbers_and_a_suggestion(tmp_path):
    result = run_tool(
        "find_lr.py", "--config-file", "quickstart.yaml", "--iterations", "40", "--output", "out",
        "--lowest", "1e-3", "--highest", "1e6", "DATASETS.TRAIN", "('shapes_tiny',)",
        "DATASETS.TEST", "()", *TINY, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    lines = (tmp_path / "out" / "find_lr.csv").read_text().splitlines()
    # It ends where the loss diverges.
    assert lines[0] == "rate,loss" and 2 < len(lines) < 41
    assert (tmp_path / "out" / "find_lr.png").stat().st_size > 1000
    assert float(result.stdout.split("SOLVER.BASE_LR ")[1].split()[0]) >= 1e-4 * 0.1


@pytest.mark.parametrize(("words", "named"), [
    (("--lowest", "1e38", "--highest", "2e38"), "expected a lower one"),  # it diverges at once
    (("--lowest", "1"), "expected"), (("--lowest", "0"), "expected"),
])  # fmt: skip
def test_a_sweep_that_cannot_be_is_one_line(tmp_path, words, named):
    data = ("DATASETS.TRAIN", "('shapes_tiny',)", "DATASETS.TEST", "()", *TINY)
    command = ["find_lr.py", "--config-file", "quickstart.yaml", *words, *data]
    assert named in tool_refuses(*command, cwd=tmp_path)
