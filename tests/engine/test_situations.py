"""Situations in the life of a run that people have reported, each kind once."""

import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils.events import EventStorage
from runs import At, run_cfg
from support import metrics, small_cfg

from isonet_det import ISONetError
from isonet_det.cli import exit_with_one_line, split_options
from isonet_det.data import check_datasets
from isonet_det.engine.arguments import build_cfg
from isonet_det.engine.evaluate import Evaluation
from isonet_det.engine.set_up import hold_output_dir
from isonet_det.engine.trainer import Trainer
from isonet_det.inference.predictor import find_images, picture_paths


def test_a_set_that_no_key_names_is_refused_and_a_home_is_a_home(few_shapes, tmp_path, monkeypatch):
    with pytest.raises(ISONetError, match=r"--dataset few: neither .* add DATASETS.TRAIN"):
        build_cfg("quickstart.yaml", [], [few_shapes])
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
        with pytest.raises(ISONetError, match="is in use by another run"):
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


def test_a_hook_before_the_writers_and_a_model_that_returns_one_tensor(tmp_path):
    class Counter(HookBase):
        def after_step(self):
            self.trainer.storage.put_scalar("counter", self.trainer.iter)

    class Theirs(Trainer):
        def build_hooks(self):
            hooks = super().build_hooks()
            hooks.insert(-1, Counter())
            return hooks

        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            forward = model.forward
            model._forward_hooks.clear()  # the orthogonal loss wants a dictionary
            model.forward = lambda batch: sum(forward(batch).values())
            return model

    Theirs(run_cfg(tmp_path, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "2")).train()
    (row,) = metrics(tmp_path)
    assert row["iteration"] == 1 and {"counter", "total_loss"} <= set(row)


def test_a_loader_of_their_own_that_diverges_says_so(tmp_path):
    def blow_up(trainer):
        trainer.model.backbone.bottom_up.stem.conv.weight.data.fill_(float("nan"))

    class Theirs(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            batch = next(iter(super().build_train_loader(cfg)))
            return [[{k: v for k, v in d.items() if k != "stream"} for d in batch]] * 9

    before = signal.getsignal(signal.SIGINT)
    trainer = Theirs(run_cfg(tmp_path, "DATASETS.TEST", "()"))
    trainer.register_hooks([At(1, blow_up)])
    with pytest.raises(FloatingPointError, match="this loader cannot repeat its data"):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) == before


@BACKBONE_REGISTRY.register()
def build_faulty_backbone(cfg, input_shape):
    return {}["res6"]


def test_a_fault_in_somebody_elses_backbone_keeps_its_traceback(tmp_path):
    with pytest.raises(KeyError) as error:
        Trainer(run_cfg(tmp_path, "MODEL.BACKBONE.NAME", "build_faulty_backbone"))
    assert error.traceback[-1].name == "build_faulty_backbone"


def test_a_set_of_somebodys_own_has_the_checkpoints_classes_or_is_refused(tmp_path):
    """Panoptic sets among them: their classes cannot be renumbered."""
    DatasetCatalog.register("own-classes", list)
    MetadataCatalog.get("own-classes").thing_classes = ["a", "b"]
    cfg = small_cfg("DATASETS.TEST", "('own-classes',)")
    check_datasets(cfg, train=False, classes=["a", "b"])
    with pytest.raises(ISONetError, match=r"\['a', 'b'\], the checkpoint has \['b', 'a'\]"):
        check_datasets(cfg, train=False, classes=["b", "a"])
