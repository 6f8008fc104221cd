"""What is left out of somebody else's training is said, and what would be wrong is refused."""

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.model_zoo import get_config as stock_config
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from support import authors_state, config
from torch import nn

from isonet_det import (
    ISONetError,
    add_orthogonal_loss,
    build_model,
    build_optimizer,
    load_weights,
    split_param_groups,
)
from isonet_det.engine.lazy import build_lazy_model
from isonet_det.modeling.detectron2 import lazy_isonet
from isonet_det.modeling.isonet import ISONet
from isonet_det.modeling.watch import await_parts

X = torch.rand(1, 3, 64, 64)


class Detector(nn.Module):
    def __init__(self, output=lambda loss: {"loss_cls": loss}):
        super().__init__()
        self.backbone, self.head = ISONet(18, out_features=["res3"]), nn.Conv2d(128, 4, 1)
        self.output = output

    def forward(self, x):
        return self.output(self.head(self.backbone(x)["res3"]).square().mean())


def test_outputs_are_not_taken_for_losses():
    attributes = type("Outputs", (dict,), {})  # as Hugging Face's
    for output in ({"pred_logits": torch.zeros(1, 4)}, attributes(loss=torch.zeros(()))):
        model = Detector(lambda loss, output=output: output)
        add_orthogonal_loss(model, 1e-4)
        with pytest.raises(ISONetError, match="no dictionary of scalar losses"):
            model(X)


@pytest.mark.parametrize(("output", "named"), [
    (lambda loss: (loss,), "no training step has returned it"),
    (lambda loss: {"count": 3}, "no training step has returned it"),
    (None, "the model's forward is not called"),
])  # fmt: skip
def test_a_loss_that_never_comes_is_said_once(output, named, caplog):
    model = nn.ModuleDict({"detector": Detector()}) if output is None else Detector(output)
    add_orthogonal_loss(model, 1e-4)
    for _ in range(5):
        (model["detector"] if output is None else model)(X)
    assert caplog.text.count(named) == 1


def test_numbers_and_lists_of_losses_stand_beside_the_penalty(caplog):
    model = Detector(lambda loss: {"count": 3, "losses": [loss, loss], "loss": loss})
    add_orthogonal_loss(model, 1e-4, accumulate_steps=2)
    for _ in range(6):
        assert model(X)["loss_ortho"].shape == ()
    assert not caplog.records


def test_a_compiled_model_has_the_penalty():
    model = Detector()
    add_orthogonal_loss(model, 1e-4)
    assert "loss_ortho" in torch.compile(model, backend="eager")(X)


@META_ARCH_REGISTRY.register()
class OwnNormalizer(nn.Module):
    """As DETR, Sparse R-CNN and detrex: nothing on the model tells of its pixels."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)


@META_ARCH_REGISTRY.register()
class OwnBuffers(OwnNormalizer):
    """As Mask2Former: statistics, and no format."""

    def __init__(self, cfg):
        super().__init__(cfg)
        for name in ("PIXEL_MEAN", "PIXEL_STD"):
            values = torch.tensor(cfg.MODEL[name]).view(-1, 1, 1)
            self.register_buffer(name.lower(), values)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(authors_state(ISONet(18)), path)
    return str(path)


@pytest.mark.parametrize("name", ["OwnNormalizer", "OwnBuffers"])
@pytest.mark.parametrize("wrong", [
    ["INPUT.FORMAT", "BGR"], ["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], []
])  # fmt: skip
def test_pixels_are_checked_in_detectors_that_do_not_tell_them(weights, name, wrong):
    options = ["MODEL.META_ARCHITECTURE", name, "MODEL.WEIGHTS", weights]
    model = build_model(config("mask_rcnn_risonet18_fpn.yaml", *options, *wrong))
    if not wrong:
        return load_weights(model, weights)
    with pytest.raises(ISONetError, match="was trained on RGB"):
        load_weights(model, weights)


def test_weights_that_are_another_networks_stop_a_stock_checkpointer(weights):
    network = lazy_isonet(18, weights=weights)
    state = {n: t for n, t in network.state_dict().items() if "res_multiplier" not in n}
    with pytest.raises(ISONetError, match=r"another network's: .*first res2\.0\.res_multiplier"):
        network.load_state_dict(state, strict=False)


def test_random_weights_are_not_frozen():
    options = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "2"]
    for network, key in (
        (lazy_isonet(18, freeze_at=2), "freeze_at"),
        (build_backbone(config("mask_rcnn_risonet18_fpn.yaml", *options)), "FREEZE_AT"),
    ):
        network.eval()(X)  # an export, an evaluation
        with pytest.raises(ISONetError, match=f"its .*{key} keeps random ones"):
            load_weights(network, "")  # at the start of our trainers
        with pytest.raises(ISONetError, match=f"its .*{key} keeps random ones"):
            network.train()(X)


def test_keys_that_the_trainer_does_not_know_are_named(caplog):
    build_backbone(config("quickstart.yaml", "SOLVER.ACCUMULATE_STEPS", "2"))(X)
    assert "SOLVER.ACCUMULATE_STEPS: isonet_det's own trainer alone" in caplog.text


def step(optimizer, model, caplog):
    caplog.clear()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(2):
        optimizer.step()
    return caplog.text


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_anybodys_optimizer_is_looked_at_once_and_can_be_split(make, caplog):
    model = Detector()
    await_parts(model.backbone, 0, "")
    groups = [
        {"params": [p for n, p in model.named_parameters() if n.startswith(part)], "lr": rate}
        for part, rate in (("backbone", 1e-5), ("head", 1e-4))
    ]
    optimizer = make(groups, lr=1e-4, weight_decay=0.05)
    assert step(make([nn.Parameter(torch.zeros(1))], 1.0), model, caplog) == ""  # another model's
    said = step(optimizer, model, caplog)
    assert "biases of SReLU with weight decay and 4 scalars at the full" in said
    assert said.count("split_param_groups") == 1
    await_parts(model.backbone, 0, "")
    split_param_groups(optimizer, model)
    assert step(optimizer, model, caplog) == ""
    of = {p: g for g in optimizer.param_groups for p in g["params"]}
    block = model.backbone.res3[0]
    assert of[block.res_multiplier]["lr"] == pytest.approx(1e-6)
    assert of[block.activation.srelu_bias]["weight_decay"] == 0
    assert of[block.conv1.weight]["lr"] == 1e-5 and of[model.head.weight]["lr"] == 1e-4
    assert len(of) == len(list(model.parameters()))


def test_the_keys_of_other_projects_optimizers_are_honored(caplog):
    model = build_model(config("quickstart.yaml"))
    cfg = config("quickstart.yaml", "SOLVER.RES_MULTIPLIER_LR_FACTOR", "0.1")
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BACKBONE_MULTIPLIER = "ADAMW", 0.1
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    rates = {round(g["lr"] / cfg.SOLVER.BASE_LR, 6) for g in optimizer.param_groups}
    assert rates == {1, 0.1, 0.01}
    cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE="full_model")
    with pytest.raises(ISONetError, match="keep its build_optimizer"):
        build_optimizer(cfg, model)
    assert step(optimizer, model, caplog) == ""


def test_a_lazy_fcos_is_checked_by_its_mappers_format(weights, caplog):
    cfg = stock_config("COCO-Detection/fcos_R_50_FPN_1x.py")
    cfg.model.num_classes, cfg.train.device = 80, "cpu"
    cfg.model.backbone.bottom_up = LazyCall(lazy_isonet)(
        depth=18, out_features=["res3", "res4", "res5"], freeze_at=0
    )
    cfg.model.backbone.top_block.in_channels = 256
    cfg.model.pixel_mean, cfg.model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.dataloader.train.mapper.image_format = "BGR"
    with pytest.raises(ISONetError, match="the config feeds BGR"):
        load_weights(build_lazy_model(cfg), weights)
    cfg.dataloader.train.mapper.image_format = "RGB"
    load_weights(build_lazy_model(cfg), weights)
    assert not caplog.records
    load_weights(instantiate(cfg.model), weights)  # by a stock loop
    assert "see that your detector feeds them" in caplog.text
