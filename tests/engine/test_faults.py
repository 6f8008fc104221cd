import itertools
import signal

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.modeling import BACKBONE_REGISTRY
from support import At, metrics, run_cfg, small_cfg

from isonet_det import ISONetError
from isonet_det.data import check_datasets
from isonet_det.engine.trainer import Trainer


def ids(trainer):
    return [d["image_id"] for batch in itertools.islice(trainer.data_loader, 4) for d in batch]


def test_a_trainer_that_neither_resumes_nor_loads_orders_its_data_by_seed(tmp_path):
    first, other, again = (ids(Trainer(run_cfg(tmp_path, "SEED", seed))) for seed in (4, 5, 4))
    assert first == again != other


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

    before = signal.getsignal(signal.SIGINT)
    trainer = Theirs(run_cfg(tmp_path, "DATASETS.TEST", "()"))
    trainer.register_hooks([At(1, blow_up)])
    with pytest.raises(FloatingPointError, match="this loader cannot repeat its data"):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) == before


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
