import itertools
import json
import shutil

import authors_training
import numpy as np
import pytest
import torch
import torchvision
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from PIL import Image
from records import fixup_records, fixup_state, official_image, official_records, official_weight
from runs import assert_identical, cut_and_resume, in_two_processes, outcome, run
from support import authors_state, config, metrics, refuses, take, tool, without
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import functional

from isonet_det import (
    ISONetError,
    build_model,
    build_optimizer,
    load_backbone,
    load_weights,
    model_zoo,
)
from isonet_det.data.image_folder import build_train_loader, build_val_loader
from isonet_det.engine.pretrainer import PretrainTrainer
from isonet_det.engine.step import Step
from isonet_det.modeling.family import PIXEL_MEAN, PIXEL_STD
from isonet_det.modeling.isonet import ISONet, ISONetOptions
from isonet_det.pretrain import main
from isonet_det.solver.schedule import build_epoch_scheduler, epochs_to_iterations
from isonet_det.weights.names import parse_checkpoint


def draw_folder(root):
    rng = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("circle", "cross", "square")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 60, (30, 40, 3)) + 90 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / split / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("images"))


SMALL = [
    "PRETRAIN.NUM_CLASSES", "3", "PRETRAIN.TRAIN_CROP", "32", "PRETRAIN.VAL_RESIZE", "36",
    "PRETRAIN.VAL_CROP", "32", "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0",
    "MODEL.DEVICE", "cpu", "SEED", "3", "PRETRAIN.DROP_EPOCHS", "(2,)",
    "PRETRAIN.WARMUP_EPOCHS", "1", "PRETRAIN.EPOCHS", "3", "SOLVER.BASE_LR", "0.01",
]  # fmt: skip


def small(folder, name="risonet18", *options):
    return config(f"imagenet/{name}.yaml", *SMALL, "PRETRAIN.ROOT", folder, *options)


EXPECTED = json.loads(authors_training.FILE.read_text())


def test_three_steps_equal_the_authors():
    rate, gamma = authors_training.RATE, authors_training.GAMMA
    cfg = config("imagenet/risonet18.yaml", "PRETRAIN.DROPOUT", "0.0", "SOLVER.BASE_LR", rate)
    model = build_model(cfg).double()
    state = {
        n: official_weight(n, shape) for n, shape in official_records()["R-ISONet-18"]["params"]
    }
    load_backbone(model, state)
    mean, std = (torch.tensor(v).view(3, 1, 1).double() for v in (PIXEL_MEAN, PIXEL_STD))
    batch = [
        {"image": image * std + mean, "label": label}
        for image, label in zip(official_image(), authors_training.LABELS, strict=True)
    ]
    step = Step(model, itertools.repeat(batch), build_optimizer(cfg, model), cfg, 0)
    with EventStorage(0) as storage:
        for step.iter in range(3):
            step.run_step()
        step.write_losses()
    for name, theirs, factor in (("loss_cls", "loss", 1), ("loss_ortho", "penalty", gamma)):
        values = [value for value, _ in storage.histories()[name].values()]
        assert values == pytest.approx([s[theirs] * factor for s in EXPECTED["steps"]], rel=1e-9)
    own = model.backbone.state_dict()
    names = dict(zip(state, parse_checkpoint(state).state, strict=True))
    assert set(names) == set(EXPECTED["weights"])
    for name, numbers in EXPECTED["weights"].items():
        found = authors_training.sampled(own[names[name]])
        np.testing.assert_allclose(found, numbers, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_rate_of_every_epoch_is_the_authors():
    cfg, base = model_zoo.get_config("imagenet/risonet50.yaml"), 0.1
    epochs_to_iterations(cfg, 1281167)
    assert cfg.SOLVER.MAX_ITER == 100 * 5004
    model = ISONet(18, num_classes=2)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_epoch_scheduler(cfg, optimizer)
    scalar = model.res2[0].res_multiplier
    groups = optimizer.param_groups
    (shared,) = [i for i, g in enumerate(groups) if any(p is scalar for p in g["params"])]
    optimizer._step_count = 1
    for epoch in range(1, 101):  # as the authors' trainer sets it, for epochs counted from 1
        expected = (
            base * epoch / 5 if epoch < 5 else base * 0.1 ** sum(epoch > m for m in (30, 60, 90))
        )
        for iteration in ((epoch - 1) * 5004, epoch * 5004 - 1):
            scheduler.last_epoch = iteration
            rates = scheduler.get_lr()
            assert (max(rates), rates[shared]) == pytest.approx((expected, expected / 10))


def test_an_epoch_shows_every_image_once_in_batches_of_any_number_of_processes(folder, monkeypatch):
    batches = take(
        build_train_loader(small(folder, "risonet18", "SOLVER.IMS_PER_BATCH", "7"), 0), 6
    )
    for epoch in (batches[:3], batches[3:]):  # of 24 // 7 batches
        names = [d["file_name"] for batch in epoch for d in batch]
        assert len(names) == len(set(names)) == 21
    image = batches[0][0]["image"]
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    cfg = small(folder)
    whole = [{d["file_name"] for d in batch} for batch in take(build_train_loader(cfg, 1), 7)]
    parts = [set() for _ in whole]
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        for part, batch in zip(parts, take(build_train_loader(cfg, 1), 7), strict=True):
            assert len(batch) == 1
            part |= {d["file_name"] for d in batch}
    assert parts == whole


def test_validation_is_the_center_of_the_resized_image_in_order(folder):
    batches = list(build_val_loader(small(folder), "val"))
    assert [len(batch) for batch in batches] == [4, 4, 4]
    found = [d for batch in batches for d in batch]
    assert [d["label"] for d in found] == [0] * 4 + [1] * 4 + [2] * 4
    image = Image.open(folder / "val" / "cross" / "001.png")
    image = functional.center_crop(functional.resize(image, 36), 32)
    assert torch.equal(found[5]["image"], functional.pil_to_tensor(image))


def test_a_run_resumes_bitwise(folder, tmp_path):
    def train(name, resume=False, *hooks):
        # 45 MB each without momentum, which the detectors' runs have; with BatchNorm, whose
        # running statistics are part of the state.
        cfg = small(
            folder, "resnet18", "OUTPUT_DIR", tmp_path / name, "PRETRAIN.DROPOUT", "0.4",
            "SOLVER.CHECKPOINT_KEEP", "1", "SOLVER.MOMENTUM", "0.0", "PRETRAIN.MIXUP", "0.7",
        )  # fmt: skip
        trainer = PretrainTrainer(PretrainTrainer.complete_cfg(cfg, []))
        (tmp_path / name).mkdir(exist_ok=True)
        run(trainer, resume, *hooks)

    train("whole")
    expected = outcome(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    cut_and_resume(train, 8, "cut")
    assert_identical(outcome(tmp_path / "cut"), expected)
    assert [r["iteration"] for r in expected[2] if "classification/top1" in r][-1] == 18


def arguments(folder, out, *options):
    return [
        "--config-file", "imagenet/risonet18.yaml", *without(SMALL, options), "PRETRAIN.ROOT",
        str(folder), "OUTPUT_DIR", str(out), *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    # Checkpoints of 45 MB: without momentum there is no second copy of the weights in them.
    options = ["SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "0", "SOLVER.MOMENTUM", "0.0"]
    tool("pretrain.py", *arguments(folder, out, *options), cwd=out.parent)
    assert (out / "model_best.pth").stat().st_size > 0
    (out / "model_best.pth").unlink()
    yield out
    shutil.rmtree(out)


def test_the_command_trains_and_resumes_and_evaluates(folder, trained, tmp_path):
    rows = metrics(trained)
    (losses,) = [row for row in rows if "loss_cls" in row]
    assert {"loss_ortho", "lr", "grad_norm"} <= set(losses) and losses["iteration"] == 7
    assert rows[-1]["iteration"] == 8 and 0 <= rows[-1]["classification/top1"] <= 100
    for name in ("curves.png", "run.json", "config.yaml"):
        assert (trained / name).stat().st_size > 0
    assert list(trained.glob("events.out.tfevents*"))

    command = arguments(folder, tmp_path, "MODEL.WEIGHTS", str(trained / "model_final.pth"))
    text = tool("pretrain.py", "--eval-only", *command, cwd=tmp_path)
    numbers = text.split("top1,top5,val_loss\n")[1].splitlines()[0].split()[-1].split(",")
    expected = (rows[-1]["classification/top1"], rows[-1]["classification/val_loss"])
    assert (float(numbers[0]), float(numbers[2])) == pytest.approx(expected, abs=1e-3)


def test_the_checkpoint_goes_into_detectors_and_is_published(trained, tmp_path, caplog):
    final, published = trained / "model_final.pth", tmp_path / "mine.safetensors"
    source = torch.load(final)["model"]
    text = tool("convert_weights.py", final, published, cwd=tmp_path)
    assert "network: R-ISONet-18" in text and "classes: 3" in text
    for weights in (final, published):
        model = build_model(config("quickstart.yaml"))
        caplog.clear()
        with caplog.at_level("INFO"):
            load_weights(model, str(weights))
        assert "its classifier is not used" in caplog.text
        for key, tensor in model.backbone.bottom_up.state_dict().items():
            assert torch.equal(tensor, source[f"backbone.{key}"]), key
        with pytest.raises(ISONetError, match="was trained on RGB"):
            load_weights(
                build_model(config("quickstart.yaml", "INPUT.FORMAT", "BGR")), str(weights)
            )
    with pytest.raises(ISONetError, match="and no detector"):
        load_weights(model, str(final), whole=True)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_of_ours_takes_torchvisions_file(depth):
    options = ISONetOptions(activation="relu", init="kaiming", norm="BN", has_res_multiplier=False)
    ours = ISONet(depth, options, num_classes=1000)
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    load_backbone(ours, theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x)["linear"], theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_the_authors_file_is_evaluated_beside_the_zoos_number(folder, tmp_path, capsys):
    weights = tmp_path / "R-ISONet-18.pth"
    torch.save(authors_state(ISONet(18, num_classes=3)), weights)
    command = arguments(folder, tmp_path / "out", "MODEL.WEIGHTS", str(weights))
    main(["--eval-only", *command])
    (line,) = [m for m in capsys.readouterr().out.splitlines() if "in the model zoo" in m]
    assert "R-ISONet-18: top-1" in line and "69.06 in the model zoo (the authors'" in line


# What is wrong in the folder.
BROKEN = {
    "no val": lambda root: shutil.rmtree(root / "val"),
    "empty class": lambda root: [p.unlink() for p in (root / "train" / "cross").iterdir()],
    "other class": lambda root: (root / "val" / "cross").rename(root / "val" / "triangle"),
    "broken image": lambda root: (root / "train" / "cross" / "003.png").write_bytes(b"\x89PNG"),
}


@pytest.mark.parametrize(("how", "options", "named"), [
    ("no val", [], "{}/val cannot be listed"),
    ("empty class", [], "cross"),
    ("other class", [], "not the same classes: cross is in one of them only"),
    ("broken image", ["MODEL.ISONET.ORTHO_COEFF", "0.0"], "003.png does not decode"),
    ("", ["PRETRAIN.NUM_CLASSES", "1000"], "has 3 classes, PRETRAIN.NUM_CLASSES is 1000"),
    ("", ["SOLVER.IMS_PER_BATCH", "25"], "24 images, fewer than one batch"),
    ("", ["PRETRAIN.EPOCHS", "0"], "PRETRAIN.EPOCHS 0 is at least 1"),
    ("", ["PRETRAIN.DROPOUT", "1.5"], "dropout"),
    ("", ["INPUT.FORMAT", "BGR"], "pre-training feeds RGB"),
    ("", ["INPUT.AUGMENTATION", "['lsj']"], "INPUT.AUGMENTATION and TEST.REPORT are for detectors"),
    ("", ["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "build_isonet_backbone"),
    ("", ["--eval-only"], "evaluation needs a trained classifier"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path, how, options, named):
    root = draw_folder(tmp_path / "images")
    BROKEN.get(how, lambda root: None)(root)
    flags, keys = ([w for w in options if w.startswith("--") == flag] for flag in (True, False))
    assert named.format(root) in refuses(main, *flags, *arguments(root, tmp_path / "out", *keys))


IMAGES = torch.from_numpy(np.random.RandomState(3).randn(4, 3, 64, 64))
KEYS = ["MODEL.RESNETS.DEPTH", "18", "SOLVER.BASE_LR", "0.005"]


def mixing(*options):
    cfg = config("imagenet/fixup.yaml", *KEYS, *options)
    mean, std = (torch.tensor(v).view(3, 1, 1).double() for v in (PIXEL_MEAN, PIXEL_STD))
    images = enumerate(IMAGES * std + mean)
    batch = [{"image": image, "label": (3, 5, 700, 3)[i]} for i, image in images]
    model = build_model(cfg).double()
    load_backbone(model, fixup_state("Fixup-18"))
    steps = cfg.SOLVER.ACCUMULATE_STEPS
    batches = itertools.cycle(batch[i::steps] for i in range(steps))
    return Step(model, batches, build_optimizer(cfg, model), cfg, 5), batch


def losses_of(step, iterations):
    with EventStorage(0) as storage:
        for step.iter in iterations:
            step.run_step()
        step.write_losses()
    assert set(storage.histories()) == {"loss_cls", "total_loss", "grad_norm", "data_time"}
    return [value for value, _ in storage.histories()["loss_cls"].values()]


@pytest.mark.parametrize("alpha", ["0.0", "0.7"])
def test_three_steps_of_fixup_equal_its_authors(alpha):
    expected = fixup_records()["steps"][alpha]
    step, _ = mixing("PRETRAIN.MIXUP", alpha)  # whose draws come from the step's seed alone
    assert losses_of(step, range(3)) == pytest.approx(expected["losses"], rel=1e-9)
    state = fixup_state("Fixup-18")
    for name, key in zip(state, parse_checkpoint(state).state, strict=True):
        values = step.model.backbone.state_dict()[key].flatten()
        found = [values.norm().item(), values[len(values) // 2].item()]
        assert found == pytest.approx(expected["weights"][name], rel=1e-9, abs=1e-12)


def _step_in_a_process(rank, folder):
    step, _ = mixing("PRETRAIN.MIXUP", "0.7")
    step.model = DistributedDataParallel(step.model)
    seen = []
    step.model.module.backbone.register_forward_pre_hook(lambda net, x: seen.append(x[0]))
    with EventStorage():
        step.run_step()
    torch.save((seen[0], step.model.module.state_dict()), f"{folder}/{rank}.pth")


def test_two_processes_mix_their_images_in_ways_of_their_own_and_train_one_network(tmp_path):
    in_two_processes(_step_in_a_process, tmp_path)
    (seen, state), (other, others) = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert not torch.equal(seen, other)
    assert all(torch.equal(state[name], others[name]) for name in state)


def test_every_micro_batch_has_draws_of_its_own_and_evaluation_none():
    step, batch = mixing("PRETRAIN.MIXUP", "0.7", "SOLVER.ACCUMULATE_STEPS", "2")
    shares = []
    step.model.backbone.register_forward_pre_hook(lambda net, x: shares.append(x[0]))
    losses_of(step, [2])
    assert len(shares) == 2 and not any((s[:, None] - IMAGES).abs().max() < 1e-9 for s in shares)
    step.model.eval()(batch)
    torch.testing.assert_close(shares[-1], IMAGES)
