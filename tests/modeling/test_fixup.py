"""Fixup networks: their authors' numbers (official_fixup.json: what code and weights made it), and
that they stand wherever an ISONet does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmark import kept_bytes
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from records import MAPS, fixup_records, fixup_state, map_error, official_image
from support import config, small_cfg

from isonet_det import (
    ISONetError,
    build_model,
    build_optimizer,
    fuse_for_inference,
    load_backbone,
    load_weights,
)
from isonet_det.config import merge_options
from isonet_det.engine.lazy import build_lazy_model, load_lazy_config
from isonet_det.modeling.family import BLOCKS_PER_STAGE
from isonet_det.modeling.fixup import Fixup
from isonet_det.modeling.isonet import ISONet, ISONetOptions
from isonet_det.weights.names import parse_checkpoint

RECORDS = fixup_records()


def official_network(name, **extra):
    net = Fixup(int(name[-2:]), num_classes=1000, out_features=list(MAPS.values()), **extra)
    load_backbone(net.double(), fixup_state(name))
    return net


@pytest.mark.parametrize(("name", "stages"), [("Fixup-18", ("res2", "res4")), ("Fixup-50", ())])
def test_maps_loss_and_gradients_are_the_authors(name, stages):
    record, net = RECORDS[name], official_network(name, checkpoint_stages=stages)
    maps = net(official_image())
    assert map_error(record, maps) < 1e-9
    loss = F.cross_entropy(maps["linear"], torch.tensor([3, 5]))
    loss.backward()
    assert loss.item() == pytest.approx(record["loss"], rel=1e-9)
    ours, state = dict(net.named_parameters()), fixup_state(name)
    theirs = dict(zip(state, parse_checkpoint(state).state, strict=True))
    assert set(theirs.values()) == set(ours)
    for key, expected in record["grad"].items():
        grad = ours[theirs[key]].grad.flatten()
        assert grad.norm().item() == pytest.approx(expected["l2"], rel=1e-9)
        np.testing.assert_allclose(grad[expected["idx"]], expected["val"], rtol=1e-9, atol=1e-12)
    norm = torch.stack([p.grad.norm() for p in ours.values()]).norm().item()
    assert norm == pytest.approx(record["grad_norm"], rel=1e-9)


@pytest.mark.parametrize("depth", [34, 50])
def test_initial_values_are_the_formulas(depth):
    net, blocks = Fixup(depth, num_classes=10), sum(BLOCKS_PER_STAGE[depth])
    for name, p in net.named_parameters():
        last = "conv3" if depth >= 50 else "conv2"
        if p.dim() == 4 and last not in name and "stem" not in name:
            factor = 1 if "shortcut" in name else blocks ** (-0.25 if depth >= 50 else -0.5)
            expected = factor * (2 / (p.shape[0] * p[0, 0].numel())) ** 0.5
            assert p.std().item() == pytest.approx(expected, rel=5 / p.numel() ** 0.5)
        elif name != "stem.conv.weight":
            assert (p == name.endswith("scale")).all(), name


@pytest.mark.parametrize(("depth", "freeze_at"), [(18, 0), (50, 2)])
def test_it_keeps_what_a_plain_resnet_keeps(depth, freeze_at):
    plain = ISONetOptions(activation="relu", init="kaiming", has_res_multiplier=False)
    kept = []
    with torch.device("meta"):
        for make in (Fixup, lambda depth, **extra: ISONet(depth, plain, **extra)):
            net, x = make(depth, freeze_at=freeze_at), torch.empty(2, 3, 96, 128)
            kept.append(kept_bytes(lambda net=net, x=x: net(x), net.parameters()))
    assert kept[0] == kept[1]


@pytest.mark.parametrize(("name", "dilation"), [("Fixup-18", 2), ("Fixup-50", 1)])
def test_folded_scripted_and_compiled_it_is_the_same(name, dilation):
    net, x = official_network(name, res5_dilation=dilation).eval(), official_image()
    fused = fuse_for_inference(fuse_for_inference(net))
    # Before what has no padding there is no bias.
    left = {n.rsplit(".", 1)[1] for n, _ in fused.named_parameters() if n.endswith(("scale", "a"))}
    assert left == ({"bias1a", "bias2a"} if name == "Fixup-18" else {"bias2a"})
    compiled = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        expected = net(x)
        for other in (fused, torch.jit.script(fused), torch.jit.script(net), compiled):
            for key, value in other(x).items():
                torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)


def test_a_classifier_of_other_classes_starts_anew(tmp_path, caplog):
    """Its scalar too, which has one shape for all."""
    path = str(tmp_path / "f.pth")
    torch.save(fixup_state("Fixup-18"), path)
    options = ["MODEL.RESNETS.DEPTH", "18", "PRETRAIN.NUM_CLASSES", "5"]
    model = build_model(config("imagenet/fixup.yaml", *options))
    with caplog.at_level("INFO"):
        load_weights(model, path)
    assert "of another shape: linear" in caplog.text
    assert all((p == 0).all() for p in model.backbone.linear.parameters())
    assert model.backbone.res5[0].scale != 1
    with pytest.raises(ISONetError, match="has 1000 classes, the config asks for 5"):
        load_weights(model, path, whole=True)


def test_a_lazy_config_trains_it():
    cfg = load_lazy_config("mask_rcnn_risonet50_fpn.py", ["model.backbone.bottom_up.depth=18",
        "train.init_checkpoint=''", "train.ortho_coeff=0", "train.device=cpu"])  # fmt: skip
    cfg.model.backbone.bottom_up.update(family="fixup", freeze_at=0)
    model = build_lazy_model(cfg)
    assert isinstance(model.backbone.bottom_up, Fixup) and not model._forward_hooks
    cfg.optimizer.params.model = model
    rates = {g["lr"] for g in instantiate(cfg.optimizer).param_groups}
    assert rates == {cfg.optimizer.lr, cfg.optimizer.lr / 10}


@pytest.mark.parametrize("name", [
    "mask_rcnn_fixup50_fpn", "faster_rcnn_risonet50_c4", "retinanet_risonet50_fpn",
    "table6/fixup50_dc5",
])  # fmt: skip
def test_detectors_train_without_a_penalty_unless_it_is_asked_for(name, tmp_path):
    cfg = config(f"{name}.yaml", "MODEL.ISONET.FAMILY", "fixup", "MODEL.WEIGHTS", "w.pth")
    instances = Instances((64, 64), gt_boxes=Boxes([[8.0, 8.0, 40.0, 40.0]]))
    instances.gt_classes = torch.tensor([0])
    instances.gt_masks = PolygonMasks([[np.array([8.0, 8, 40, 8, 40, 40])]])
    for gamma in ("-1", "1e-4"):
        merge_options(cfg, ["MODEL.ISONET.ORTHO_COEFF", gamma])
        model = build_model(cfg)
        with EventStorage():
            losses = model([{"image": torch.rand(3, 64, 64), "instances": instances}])
        assert all(loss.isfinite() for loss in losses.values())
        assert ("loss_ortho" in losses) == (gamma != "-1")
    # An ImageNet file fills it, into its head too.
    path = tmp_path / "fixup.pth"
    state = {f"module.{n}": t for n, t in fixup_state("Fixup-50").items()}
    torch.save({"state_dict": state, "arch": "fixup_resnet50", "epoch": 9}, path)
    load_weights(model, str(path))
    assert all(m.scale != 1 for m in model.modules() if hasattr(m, "scale"))


def test_biases_and_scales_train_at_a_tenth_of_the_rate():
    detector = build_model(small_cfg("MODEL.ISONET.FAMILY", "fixup"))
    cfg = small_cfg("SOLVER.RES_MULTIPLIER_LR_FACTOR", "0.1", "MODEL.FPN.NORM", "")
    classifier = Fixup(18, num_classes=3)
    for model, optimizer, part in (
        (detector, build_optimizer(cfg, detector), "backbone.bottom_up."),
        (classifier, build_optimizer(cfg, classifier), ""),
    ):
        of = {p: g for g in optimizer.param_groups for p in g["params"]}
        for name, p in model.named_parameters():
            scalar = p.numel() == 1 or name == "linear.bias"
            assert of[p]["lr"] == pytest.approx(0.004 if name.startswith(part) and scalar else 0.04)
            assert of[p]["weight_decay"] == 1e-4
