import itertools
import signal

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.modeling import BACKBONE_REGISTRY
from support import TINY, At, metrics, run_cfg, run_command, small_cfg

from isonet_det import ISONetError
from isonet_det.config import find_config_file
from isonet_det.data import check_datasets
from isonet_det.engine.trainer import Trainer
from isonet_det.train import main


def ids(trainer):
    return [d["image_id"] for batch in itertools.islice(trainer.data_loader, 4) for d in batch]


def test_a_trainer_that_neither_resumes_nor_loads_orders_its_data_by_seed(tmp_path):
    first, other, again = (ids(Trainer(run_cfg(tmp_path, "SEED", seed))) for seed in (4, 5, 4))
    assert first == again != other


def test_the_schedule_is_checked_as_it_will_run(tmp_path, few_shapes, capfd):
    """Three iterations are a schedule; scaled to twice the processes they are none."""
    (tmp_path / "three.yaml").write_text(
        f"_BASE_: {find_config_file('quickstart.yaml')}\n"
        "SOLVER: {LR_SCHEDULER_NAME: WarmupMultiStepLR, MAX_ITER: 3, STEPS: [1, 2]}"
    )
    command = [
        "--config-file", str(tmp_path / "three.yaml"), "--num-gpus", "2", "--dataset", few_shapes,
        "DATASETS.TRAIN", "('few',)", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "out"),
        "SOLVER.REFERENCE_WORLD_SIZE", "1",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
    assert "schedule cannot be built" in capfd.readouterr().err.strip().splitlines()[-1]


FLUSHED = """
import torch
from isonet_det.train import main

torch.set_num_threads(2)
main({words})
product = torch.full((4_000_000,), 1e-20) * torch.full((4_000_000,), 1e-22)
print("flushed:", (product == 0).float().mean().item())
"""


@pytest.mark.slow
def test_every_thread_of_a_training_flushes_subnormals(tmp_path, few_shapes):
    """Those that the checks have started too: half of the work took twenty times longer."""
    words = [
        "--config-file", "quickstart.yaml", "--dataset", few_shapes, *TINY, "DATASETS.TRAIN",
        "('few',)", "DATASETS.TEST", "()", "OUTPUT_DIR", "out", "SOLVER.MAX_ITER", "1",
    ]  # fmt: skip
    (tmp_path / "run.py").write_text(FLUSHED.format(words=words))
    result = run_command("run.py", cwd=tmp_path, env={"OMP_NUM_THREADS": "2"})
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().splitlines()[-1] == "flushed: 1.0"


def test_handlers_are_given_back_when_a_hook_fails_before_training(tmp_path):
    class Bad(HookBase):
        def before_train(self):
            raise KeyError("theirs")

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    trainer = Trainer(run_cfg(tmp_path, "DATASETS.TEST", "()"))
    trainer.register_hooks([Bad()])
    with pytest.raises(KeyError, match="theirs"):
        trainer.train()
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


# In somebody else's trainer.


def test_a_hook_inserted_before_the_last_one_is_before_the_writers(tmp_path):
    class Counter(HookBase):
        def after_step(self):
            self.trainer.storage.put_scalar("counter", self.trainer.iter)

    class Theirs(Trainer):
        def build_hooks(self):
            hooks = super().build_hooks()
            hooks.insert(-1, Counter())
            return hooks

    Theirs(run_cfg(tmp_path, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "2")).train()
    assert [(row["iteration"], "counter" in row) for row in metrics(tmp_path)] == [(1, True)]


def test_a_loader_of_their_own_that_diverges_says_so(tmp_path):
    def blow_up(trainer):
        trainer.model.backbone.bottom_up.stem.conv.weight.data.fill_(float("nan"))

    class Theirs(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            batch = next(iter(super().build_train_loader(cfg)))
            return [[{k: v for k, v in d.items() if k != "stream"} for d in batch]] * 9

    trainer = Theirs(run_cfg(tmp_path, "DATASETS.TEST", "()"))
    trainer.register_hooks([At(1, blow_up)])
    with pytest.raises(FloatingPointError, match="this loader cannot repeat its data"):
        trainer.train()


def test_a_model_that_returns_one_tensor_trains(tmp_path):
    class Theirs(Trainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            forward = model.forward
            model._forward_hooks.clear()  # the orthogonal loss wants a dictionary
            model.forward = lambda batch: sum(forward(batch).values())
            return model

    Theirs(run_cfg(tmp_path, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")).train()
    assert '"total_loss"' in (tmp_path / "metrics.json").read_text()


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
