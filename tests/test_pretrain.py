"""Pre-training: the authors' step, schedule and data; whole commands on drawn image folders."""

import itertools
import json

import authors_training
import numpy as np
import pytest
import torch
from conftest import official_weight
from detectron2.utils.events import EventStorage
from PIL import Image

from isonet_det import (
    ISONet,
    build_model,
    build_optimizer,
    load_backbone,
    model_zoo,
)
from isonet_det.checkpoint import parse_checkpoint
from isonet_det.config import merge_options
from isonet_det.isonet import PIXEL_MEAN, PIXEL_STD
from isonet_det.schedule import build_epoch_scheduler, epochs_to_iterations
from isonet_det.step import Step

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
