"""Pre-training: the authors' step, schedule and data; whole commands on drawn image folders."""

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
from support import (
    At,
    PowerCut,
    assert_identical,
    authors_state,
    cut,
    in_two_processes,
    official_weight,
    outcome,
    run_tool,
    take,
    without_pictures,
)
from torchvision.transforms import Compose, Normalize, ToTensor, functional

from isonet_det import (
    ISONet,
    ISONetError,
    ISONetOptions,
    build_model,
    build_optimizer,
    load_backbone,
    load_weights,
    model_zoo,
)
from isonet_det.config import merge_options
from isonet_det.data.image_folder import build_train_loader, build_val_loader
from isonet_det.engine.pretrainer import PretrainTrainer
from isonet_det.engine.step import Step
from isonet_det.modeling.family import PIXEL_MEAN, PIXEL_STD
from isonet_det.pretrain import main
from isonet_det.solver.schedule import build_epoch_scheduler, epochs_to_iterations
from isonet_det.weights.loader import network_of_checkpoint
from isonet_det.weights.names import parse_checkpoint

CLASSES = ("circle", "cross", "square")


def draw_folder(root, per_class=(8, 4), size=(40, 30)):
    """ImageNet's layout: three classes of noise, each of its own brightness."""
    rng = np.random.RandomState(0)
    for split, count in zip(("train", "val"), per_class, strict=True):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 60, (size[1], size[0], 3)) + 90 * label
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


def small(folder, config="risonet18", *options):
    cfg = model_zoo.get_config(f"imagenet/{config}.yaml")
    merge_options(cfg, [*SMALL, "PRETRAIN.ROOT", str(folder), *options])
    return cfg


# The authors' trainer.


@pytest.fixture(scope="module")
def expected():
    with open(authors_training.FILE) as f:
        return json.load(f)


def test_three_steps_equal_the_authors(official, expected):
    cfg = model_zoo.get_config("imagenet/risonet18.yaml")
    options = ["MODEL.DEVICE", "cpu", "PRETRAIN.DROPOUT", "0.0", "SOLVER.BASE_LR"]
    merge_options(cfg, [*options, str(authors_training.RATE)])
    model = build_model(cfg).double()
    state = {n: official_weight(n, shape) for n, shape in official["R-ISONet-18"]["params"]}
    load_backbone(model, state)
    mean, std = (torch.tensor(v).view(3, 1, 1).double() for v in (PIXEL_MEAN, PIXEL_STD))
    batch = [
        {"image": image * std + mean, "label": label}
        for image, label in zip(authors_training.image(), authors_training.LABELS, strict=True)
    ]
    step = Step(model, itertools.repeat(batch), build_optimizer(cfg, model))
    with EventStorage(0) as storage:
        for step.iter in range(3):
            step.run_step()
        step.write_losses()
    histories = storage.histories()
    gamma = authors_training.GAMMA
    for name, theirs, factor in (("loss_cls", "loss", 1), ("loss_ortho", "penalty", gamma)):
        values = [value for value, _ in histories[name].values()]
        assert values == pytest.approx([s[theirs] * factor for s in expected["steps"]], rel=1e-9)
    own = model.backbone.state_dict()
    names = dict(zip(state, parse_checkpoint(state).state, strict=True))
    found = {theirs: authors_training.sampled(own[ours]) for theirs, ours in names.items()}
    assert set(found) == set(expected["weights"])
    for name, numbers in expected["weights"].items():
        np.testing.assert_allclose(found[name], numbers, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_written_out_network_is_the_authors(official):
    """What the recorded steps were made with."""
    record = official["R-ISONet-18"]
    logits = authors_training.network(
        authors_training.parameters(record), authors_training.image()
    ).detach()
    values = logits.flatten()[record["logits"]["idx"]].numpy()
    np.testing.assert_allclose(values, record["logits"]["val"], rtol=1e-9)


@pytest.mark.slow
def test_the_recorded_steps_are_what_the_written_out_training_gives(official, expected):
    found = authors_training.three_steps(official["R-ISONet-18"])
    assert found["steps"][0]["penalty"] == pytest.approx(
        official["R-ISONet-18"]["ortho"]["total"], rel=1e-12
    )
    for a, b in zip(found["steps"], expected["steps"], strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    for name, numbers in expected["weights"].items():
        np.testing.assert_allclose(found["weights"][name], numbers, rtol=1e-9, atol=1e-12)


def authors_rate(epoch, base, warmup, milestones):
    """As the authors' trainer sets it, for epochs counted from 1."""
    if epoch < warmup:
        return base * epoch / warmup
    return base * 0.1 ** sum(epoch > m for m in milestones)


@pytest.mark.parametrize(("config", "base"), [("risonet50", 0.1), ("isonet101", 0.02)])
def test_the_rate_of_every_epoch_is_the_authors(config, base):
    cfg = model_zoo.get_config(f"imagenet/{config}.yaml")
    epochs_to_iterations(cfg, 1281167)
    assert cfg.SOLVER.MAX_ITER == 100 * 5004
    model = ISONet(18, num_classes=2)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_epoch_scheduler(cfg, optimizer)
    shared = [
        g for g in optimizer.param_groups for p in g["params"] if p is model.res2[0].res_multiplier
    ]
    optimizer._step_count = 1
    for epoch in range(1, 101):
        for iteration in ((epoch - 1) * 5004, epoch * 5004 - 1):
            scheduler.last_epoch = iteration
            rates = scheduler.get_lr()
            expected = authors_rate(epoch, base, 5, (30, 60, 90))
            assert max(rates) == pytest.approx(expected)
            index = optimizer.param_groups.index(shared[0])
            assert rates[index] == pytest.approx(expected / 10)


# The data.


@pytest.mark.parametrize("workers", ["0", "2"])
def test_training_images_are_a_function_of_seed_and_position(folder, workers):
    cfg = small(folder)
    expected = take(build_train_loader(cfg, 5), 8)
    cfg.DATALOADER.NUM_WORKERS = int(workers)
    for ours, theirs in zip(take(build_train_loader(cfg, 5), 5, 3), expected[3:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a["file_name"] == b["file_name"] and a["label"] == b["label"]
            assert torch.equal(a["image"], b["image"])
    other = take(build_train_loader(cfg, 6), 1)
    assert [d["file_name"] for d in other[0]] != [d["file_name"] for d in expected[0]]


def test_an_epoch_shows_every_image_once_and_drops_the_rest(folder):
    cfg = small(folder, "risonet18", "SOLVER.IMS_PER_BATCH", "7")
    batches = take(build_train_loader(cfg, 0), 6)  # two epochs of 24 // 7 batches
    for epoch in (batches[:3], batches[3:]):
        names = [d["file_name"] for batch in epoch for d in batch]
        assert len(names) == len(set(names)) == 21
    assert {tuple(d["image"].shape) for d in batches[0]} == {(3, 32, 32)}
    assert batches[0][0]["image"].dtype == torch.uint8


@pytest.mark.parametrize("world", [2, 4])
def test_what_a_batch_holds_does_not_depend_on_the_number_of_processes(folder, monkeypatch, world):
    cfg = small(folder)
    whole = [{d["file_name"] for d in batch} for batch in take(build_train_loader(cfg, 1), 7)]
    parts = [set() for _ in whole]
    for rank in range(world):
        monkeypatch.setattr(comm, "get_world_size", lambda: world)
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        for part, batch in zip(parts, take(build_train_loader(cfg, 1), 7), strict=True):
            assert len(batch) == 4 // world
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


def test_logits_are_those_of_the_authors_preprocessing(folder):
    """A 0-1 scale with ImageNet's mean and std, RGB."""
    model = build_model(small(folder)).eval()
    path = folder / "val" / "square" / "000.png"
    image = Image.open(path).crop((0, 0, 32, 30))
    authors = Compose([ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    batch = [{"image": torch.from_numpy(np.array(image)).permute(2, 0, 1)}]
    load_backbone(model, authors_state(ISONet(18, num_classes=3)))
    expected = model.backbone(authors(image)[None])["linear"]
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)


# Runs.


def test_a_run_resumes_bitwise(folder, tmp_path):
    def train(name, resume=False, *hooks):
        options = ["OUTPUT_DIR", str(tmp_path / name), "PRETRAIN.DROPOUT", "0.4"]
        options += ["PRETRAIN.MIXUP", "0.7"]
        # 45 MB each without momentum, which the detectors' runs have.
        options += ["SOLVER.CHECKPOINT_KEEP", "1", "SOLVER.MOMENTUM", "0.0"]
        # With BatchNorm, whose running statistics are part of the state.
        cfg = PretrainTrainer.complete_cfg(small(folder, "resnet18", *options), [])
        (tmp_path / name).mkdir(exist_ok=True)
        trainer = PretrainTrainer(cfg)
        trainer.register_hooks(list(hooks))
        trainer.resume_or_load(resume)
        with without_pictures():
            trainer.train()

    train("whole")
    expected = outcome(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    with pytest.raises(PowerCut):
        train("cut", False, At(8, cut))
    train("cut", True)
    assert_identical(outcome(tmp_path / "cut"), expected)
    assert [r["iteration"] for r in expected[2] if "classification/top1" in r][-1] == 18


def arguments(folder, out, config="risonet18", *options):
    words = [w for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if pair[0] not in options
             for w in pair]  # fmt: skip
    return [
        "--config-file", f"imagenet/{config}.yaml", *words, "PRETRAIN.ROOT", str(folder),
        "OUTPUT_DIR", str(out), *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The run's folder of a command."""
    out = tmp_path_factory.mktemp("run") / "out"
    # Checkpoints of 45 MB: without momentum there is no second copy of the weights in them.
    options = ["SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "0", "SOLVER.MOMENTUM", "0.0"]
    command = arguments(folder, out, "risonet18", *options)
    result = run_tool("pretrain.py", *command, cwd=out.parent)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (out / "model_best.pth").stat().st_size > 0
    (out / "model_best.pth").unlink()
    yield out
    shutil.rmtree(out)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]


def test_the_command_trains_and_resumes_and_evaluates(folder, trained, tmp_path):
    rows = metrics(trained)
    (losses,) = [row for row in rows if "loss_cls" in row]
    assert {"loss_ortho", "lr", "grad_norm"} <= set(losses) and losses["iteration"] == 7
    assert rows[-1]["iteration"] == 8 and 0 <= rows[-1]["classification/top1"] <= 100
    for name in ("curves.png", "run.json", "config.yaml"):
        assert (trained / name).stat().st_size > 0
    assert list(trained.glob("events.out.tfevents*"))

    weights = ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    command = arguments(folder, tmp_path, "risonet18", *weights)
    result = run_tool("pretrain.py", "--eval-only", *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    numbers = result.stdout.split("top1,top5,val_loss\n")[1].splitlines()[0].split()[-1].split(",")
    assert float(numbers[0]) == pytest.approx(rows[-1]["classification/top1"], abs=1e-3)
    assert float(numbers[2]) == pytest.approx(rows[-1]["classification/val_loss"], abs=1e-3)


def test_the_checkpoint_goes_into_detectors_and_is_published(trained, tmp_path, caplog):
    final = trained / "model_final.pth"
    source = torch.load(final)["model"]
    published = tmp_path / "mine.safetensors"
    result = run_tool("convert_weights.py", final, published, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "network: R-ISONet-18" in result.stdout and "classes: 3" in result.stdout
    for name in ("mask_rcnn_risonet18_fpn", "quickstart"):
        for weights in (final, published):
            cfg = model_zoo.get_config(f"{name}.yaml")
            cfg.MODEL.DEVICE = "cpu"
            model = build_model(cfg)
            caplog.clear()
            with caplog.at_level("INFO"):
                load_weights(model, str(weights))
            assert "its classifier is not used" in caplog.text
            own = model.backbone.bottom_up.state_dict()
            for key, tensor in own.items():
                assert torch.equal(tensor, source[f"backbone.{key}"]), key
    cfg.INPUT.FORMAT = "BGR"
    for weights in (final, published):
        with pytest.raises(ISONetError, match="was trained on RGB"):
            load_weights(build_model(cfg), str(weights))
    with pytest.raises(ISONetError, match="and no detector"):
        load_weights(model, str(final), whole=True)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_of_ours_fills_detectron2s_and_comes_from_torchvision(depth):
    options = ISONetOptions(activation="relu", init="kaiming", norm="BN", has_res_multiplier=False)
    ours = ISONet(depth, options, num_classes=1000)
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    load_backbone(ours, theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x)["linear"], theirs(x), rtol=1e-4, atol=1e-5)
    checkpoint = parse_checkpoint({f"backbone.{n}": t for n, t in ours.state_dict().items()})
    assert str(checkpoint.network) == f"ResNet-{depth}"
    detectron2s = network_of_checkpoint(checkpoint).eval()
    features = ISONet(depth, options).eval()
    load_backbone(features, checkpoint)
    torch.testing.assert_close(detectron2s(x)["res5"], features(x)["res5"], rtol=1e-4, atol=1e-5)


def test_the_authors_file_is_evaluated_beside_the_zoos_number(folder, tmp_path, capsys):
    torch.save(authors_state(ISONet(18, num_classes=3)), tmp_path / "R-ISONet-18.pth")
    command = arguments(folder, tmp_path / "out", "risonet18", "MODEL.WEIGHTS")
    main(["--eval-only", *command, str(tmp_path / "R-ISONet-18.pth")])
    (line,) = [m for m in capsys.readouterr().out.splitlines() if "in the model zoo" in m]
    assert "R-ISONet-18: top-1" in line and "69.06 in the model zoo (the authors'" in line


def test_another_number_of_classes_starts_a_new_classifier(folder, caplog):
    model = build_model(small(folder))
    before = model.backbone.linear.weight.clone()
    torch.save(authors_state(ISONet(18, num_classes=7)), folder / "seven.pth")
    with caplog.at_level("INFO"):
        load_weights(model, str(folder / "seven.pth"))
    assert "of another shape: linear" in caplog.text
    assert torch.equal(model.backbone.linear.weight, before)
    with pytest.raises(ISONetError, match="has 7 classes, the config asks for 3"):
        load_weights(model, str(folder / "seven.pth"), whole=True)


def broken(folder, how):
    """A copy of the folder with one thing wrong."""
    if how == "no val":
        shutil.rmtree(folder / "val")
    elif how == "empty class":
        for path in (folder / "train" / "cross").iterdir():
            path.unlink()
    elif how == "other class":
        (folder / "val" / "cross").rename(folder / "val" / "triangle")
    elif how == "broken image":
        path = folder / "train" / "cross" / "003.png"
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("how", "options", "named"),
    [
        ("no val", [], "there is no folder {}/val; PRETRAIN.ROOT is the folder of"),
        ("empty class", [], "cross"),
        ("other class", [], "not the same classes: cross is in one of them only"),
        ("broken image", ["MODEL.ISONET.ORTHO_COEFF", "0.0"], "003.png does not decode"),
        ("", ["PRETRAIN.ROOT", "nowhere"], "there is no folder nowhere/train"),
        ("", ["PRETRAIN.NUM_CLASSES", "1000"], "has 3 classes, PRETRAIN.NUM_CLASSES is 1000"),
        ("", ["SOLVER.IMS_PER_BATCH", "25"], "24 images, fewer than one batch"),
        ("", ["PRETRAIN.EPOCHS", "0"], "PRETRAIN.EPOCHS 0 is at least 1"),
        ("", ["PRETRAIN.WARMUP_EPOCHS", "3"], "do not increase"),
        ("", ["PRETRAIN.DROPOUT", "1.5"], "dropout"),
        ("", ["PRETRAIN.MIXUP", "-1.0"], "PRETRAIN.MIXUP: expected a number from 0"),
        ("", ["INPUT.FORMAT", "BGR"], "pre-training feeds RGB"),
        ("", ["INPUT.AUGMENTATION", "['lsj']"], "INPUT.AUGMENTATION is for detectors"),
        ("", ["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "build_isonet_backbone"),
        ("", ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN"),
        ("", ["MODEL.META_ARCHITECTURE", "RetinaNet"], "is no ImageClassifier"),
        ("", ["MODEL.ISONET.NORM", "XY"], "NORM"),
        ("", ["MODEL.ISONET.NORM", "BN"], "HAS_RES_MULTIPLIER False"),
        ("", ["MODEL.RESNETS.DEPTH", "19"], "DEPTH is one of"),
        ("", ["--eval-only"], "evaluation needs a trained classifier"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, how, options, named):
    root = draw_folder(tmp_path / "images")
    broken(root, how)
    flags = [word for word in options if word.startswith("--")]
    options = [word for word in options if not word.startswith("--")]
    with pytest.raises(SystemExit) as status:
        main([*flags, *arguments(root, tmp_path / "out", "risonet18", *options)])
    assert status.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and named.format(root) in line, line


def _with_statistics_of_its_own(rank):
    torch.manual_seed(7)
    model = build_model(small("", "resnet18"))
    torch.manual_seed(rank)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.constant_(module.weight, 1)
    return model


def _evaluate(rank, meeting, folder):
    results = PretrainTrainer.test(small(folder, "resnet18"), _with_statistics_of_its_own(rank))
    if rank == 0:
        torch.save(results, f"{meeting}/results.pth")


@pytest.mark.slow
def test_processes_evaluate_with_the_statistics_of_the_first(folder, tmp_path):
    in_two_processes(_evaluate, tmp_path, str(folder))
    expected = PretrainTrainer.test(small(folder, "resnet18"), _with_statistics_of_its_own(0))
    found = torch.load(tmp_path / "results.pth", weights_only=False)
    for name, value in expected["classification"].items():
        assert found["classification"][name] == pytest.approx(value, rel=1e-5), name
