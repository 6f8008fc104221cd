import pytest
import torch
from detectron2.config import get_cfg as stock_cfg
from detectron2.modeling import build_backbone
from detectron2.projects.deeplab import add_deeplab_config

from isonet_det import ISONet, ISONetError, get_cfg

RES = ["res2", "res3", "res4", "res5"]


def make_cfg(builder="build_isonet_backbone", depth=18, **keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = builder, 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = RES
    for name, value in keys.items():
        setattr(cfg.MODEL.RESNETS, name, value)
    return cfg


@pytest.mark.parametrize("depth", (18, 50))
@pytest.mark.parametrize(("builder", "features", "strides"), [
    ("build_isonet_backbone", RES[2:], {"res4": 16, "res5": 32}),
    ("build_isonet_fpn_backbone", RES, {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}),
    ("build_retinanet_isonet_fpn_backbone", RES[1:],
     {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
])  # fmt: skip
def test_builders(builder, features, strides, depth):
    cfg = make_cfg(builder, depth)
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = features
    backbone = build_backbone(cfg)
    assert {n: s.stride for n, s in backbone.output_shape().items()} == strides
    maps = backbone(torch.randn(1, 3, 128, 128))
    for name, shape in backbone.output_shape().items():
        assert maps[name].shape == (1, shape.channels, 128 // shape.stride, 128 // shape.stride)


@pytest.mark.parametrize("residual", [True, False])
def test_every_network_key_reaches_the_network(residual):
    cfg = make_cfg(RES5_DILATION=2)
    keys = cfg.MODEL.ISONET
    keys.RESIDUAL, keys.SRELU_BIAS, keys.SRELU_LEARNABLE = residual, -2.0, False
    keys.INIT, keys.RES_MULTIPLIER = "kaiming", 0.25
    net = build_backbone(cfg)
    bias = net.stem.activation.srelu_bias
    assert bias.unique().tolist() == [-2.0] and not bias.requires_grad
    assert net.res5[0].conv1.weight.count_nonzero() > 512 * 9
    assert net.output_shape()["res5"].stride == 16
    assert not residual or net.res3[0].res_multiplier.item() == 0.25
    assert (net.res3[0].shortcut is not None) == residual


def test_what_cannot_be_built_is_refused():
    without = stock_cfg()
    without.MODEL.BACKBONE.NAME = "build_isonet_backbone"
    other, fixup = make_cfg(), make_cfg()
    other.MODEL.ISONET.FAMILY = "other"
    fixup.MODEL.ISONET.FAMILY, fixup.MODEL.ISONET.NORM = "fixup", "BN"
    for cfg, named in (
        (without, "add_isonet_config"),
        (other, r"MODEL\.ISONET\.FAMILY is one of \['fixup', 'isonet'\]"),
        (fixup, r"MODEL\.ISONET\.NORM is not for the family"),
        (make_cfg("build_isonet_fpn_backbone", OUT_FEATURES=["res5"]), "OUT_FEATURES"),
        (make_cfg("build_retinanet_isonet_fpn_backbone", OUT_FEATURES=["res4"]), "res5"),
    ):
        with pytest.raises(ISONetError, match=named):
            build_backbone(cfg)


@pytest.mark.parametrize("depth", [18, 34])
def test_dilated_resnets_of_basic_blocks(depth):
    cfg = make_cfg("build_dilated_resnet_backbone", depth, RES2_OUT_CHANNELS=64, RES5_DILATION=2)
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT = ["res4", "res5"], 2
    net = build_backbone(cfg)
    assert [shape.stride for shape in net.output_shape().values()] == [16, 16]
    assert net(torch.randn(1, 3, 64, 96))["res5"].shape[2:] == (4, 6)
    assert not any(p.requires_grad for p in net.res2.parameters())
    kernels = [m for m in net.res5.modules() if getattr(m, "kernel_size", 0) == (3, 3)]
    assert {(m.dilation, m.padding, m.stride) for m in kernels} == {((2, 2), (2, 2), (1, 1))}
    cfg.MODEL.RESNETS.RES5_DILATION, cfg.MODEL.BACKBONE.NAME = 1, "build_resnet_backbone"
    assert net.state_dict().keys() == build_backbone(cfg).state_dict().keys()


def test_deeplabs_keys_are_honored_or_refused_by_name():
    cfg = make_cfg(depth=50)
    add_deeplab_config(cfg)
    with pytest.raises(ISONetError, match="STEM_TYPE of an ISONet is 'basic', not 'deeplab'"):
        build_backbone(cfg)
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.RESNETS.RES4_DILATION, cfg.MODEL.RESNETS.RES5_DILATION = 2, 4
    cfg.MODEL.ISONET.ORTHO_STRIDE = "undilated"
    net = build_backbone(cfg)
    assert isinstance(net, ISONet)
    assert [block.conv2.dilation[0] for block in net.res5] == [4, 8, 16]
    assert {s.stride for n, s in net.output_shape().items() if n != "res2"} == {8}
    firsts = [getattr(net, name)[0].conv2 for name in ("res3", "res4", "res5")]
    assert [conv.gram_stride for conv in firsts] == [(2, 2)] * 3
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    with pytest.raises(ISONetError, match="res4_dilation"):
        build_backbone(cfg)
