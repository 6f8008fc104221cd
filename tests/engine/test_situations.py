"""Situations in the life of a run that people have reported, each kind once."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage
from support import run_cfg

from isonet_det import ISONetError
from isonet_det.cli import exit_with_one_line, split_options
from isonet_det.engine.arguments import build_cfg
from isonet_det.engine.evaluate import Evaluation
from isonet_det.engine.set_up import hold_output_dir
from isonet_det.engine.trainer import Trainer
from isonet_det.inference.predictor import find_images, picture_paths


def test_a_data_set_that_no_key_names_is_refused(few_shapes):
    with pytest.raises(ISONetError, match=r"--dataset few: neither .* add DATASETS.TRAIN"):
        build_cfg("quickstart.yaml", [], [few_shapes])


def test_a_home_in_a_yaml_is_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("OUTPUT_DIR: ~/run")
    assert build_cfg(str(tmp_path / "c.yaml"), []).OUTPUT_DIR == f"{tmp_path}/run"


def test_an_ap_of_nan_is_not_the_best():
    evaluation = Evaluation(1, lambda: None, "bbox/AP", 2)
    with EventStorage(0) as storage:
        evaluation.trainer = SimpleNamespace(storage=storage, iter=0)
        for value in (math.nan, 1.0, 2.0, 3.0):
            storage.put_scalar("bbox/AP", value)
            evaluation._compare()
    assert (evaluation.best, evaluation.waited) == (3.0, 0)


def test_two_runs_do_not_share_a_folder(tmp_path):
    words = f"from filelock import FileLock; lock = FileLock({str(tmp_path / '.lock')!r})"
    code = f"import time; {words}; lock.acquire(); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        (tmp_path / ".lock.owner").write_text("process 7 on host")
        with pytest.raises(ISONetError, match="process 7 on host trains there"):
            with hold_output_dir(str(tmp_path)):
                pass
        other.kill()
    with hold_output_dir(str(tmp_path)):  # it ended with its process
        pass


def test_options_behind_many_words_are_options():
    options = ["A.B", "1"]
    assert split_options(["a.jpg", "MODEL.MASK_ON", "True"], options) == ["a.jpg"]
    assert options == ["MODEL.MASK_ON", "True", "A.B", "1"]


def test_photos_of_a_mac_and_of_one_stem(tmp_path):
    for name in ("a.jpg", "a.png", "._a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "x.png").mkdir()
    images = find_images([str(tmp_path)])
    assert [os.path.basename(i) for i in images] == ["a.jpg", "a.png", "b.png"]
    targets = picture_paths(images, "out").values()
    assert [os.path.basename(t) for t in targets] == ["a.jpg.png", "a.png.png", "b.png"]


@pytest.mark.parametrize(("what", "value", "named"), [
    ("shutil.disk_usage", SimpleNamespace(free=64_000), r"NUM_WORKERS 2 hand over .*--shm-size"),
    ("resource.getrlimit", (64, 64), r"may open 64 files, .*NUM_WORKERS 2 .*ulimit -n"),
])  # fmt: skip
def test_too_little_for_loader_workers_is_named(tmp_path, monkeypatch, what, value, named):
    monkeypatch.setattr(f"isonet_det.data.stream.{what}", lambda of: value)
    with pytest.raises(ISONetError, match=named):
        Trainer(run_cfg(tmp_path, "DATALOADER.NUM_WORKERS", "2"))


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"),
                                   RuntimeError("received 0 items of ancdata")])  # fmt: skip
def test_too_many_open_files_are_one_line(error, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        exit_with_one_line(fail)
    assert stop.value.code == 2 and "ulimit -n" in capsys.readouterr().err
