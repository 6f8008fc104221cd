import dataclasses
from functools import partial

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.projects.deeplab import add_deeplab_config

from isonet_det import ISONet, ISONetError, ISONetOptions, get_cfg
from isonet_det.modeling import FAMILIES
from isonet_det.modeling.family import StagedNetwork
from isonet_det.modeling.isonet import ISONET, Block, Stem


def make_cfg(builder="build_isonet_fpn_backbone", depth=18, **keys):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.merge_from_list([word for pair in keys.items() for word in pair])
    return cfg


@pytest.mark.parametrize("depth", (18, 34, 50, 101))
@pytest.mark.parametrize(
    ("builder", "features", "strides"),
    [
        ("build_isonet_backbone", ["res4", "res5"], {"res4": 16, "res5": 32}),
        (
            "build_isonet_fpn_backbone",
            ["res2", "res3", "res4", "res5"],
            {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64},
        ),
        (
            "build_retinanet_isonet_fpn_backbone",
            ["res3", "res4", "res5"],
            {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128},
        ),
    ],
)
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
    cfg = make_cfg("build_isonet_backbone")
    keys = cfg.MODEL.ISONET
    keys.RESIDUAL, keys.SRELU_BIAS, keys.SRELU_LEARNABLE = residual, -2.0, False
    keys.INIT, keys.RES_MULTIPLIER = "kaiming", 0.25
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    net = build_backbone(cfg)
    assert isinstance(net, ISONet)
    assert net.stem.activation.srelu_bias.unique().tolist() == [-2.0]
    assert not net.stem.activation.srelu_bias.requires_grad
    assert net.res5[0].conv1.weight.count_nonzero() > 512 * 9
    assert net.output_shape()["res5"].stride == 16
    if residual:
        assert net.res3[0].res_multiplier.item() == 0.25
    assert (net.res3[0].shortcut is not None) == residual


@pytest.mark.parametrize(
    ("builder", "key", "value", "named"),
    [
        ("build_isonet_backbone", "MODEL.RESNETS.DEPTH", 42, "42"),
        ("build_isonet_backbone", "MODEL.RESNETS.RES5_DILATION", 3, "RES5_DILATION"),
        ("build_isonet_backbone", "MODEL.BACKBONE.FREEZE_AT", 7, "FREEZE_AT"),
        ("build_isonet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res9"], "res9"),
        ("build_isonet_backbone", "MODEL.RESNETS.NUM_GROUPS", 32, "NUM_GROUPS"),
        ("build_isonet_backbone", "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "WIDTH_PER_GROUP"),
        (
            "build_isonet_backbone",
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
            [False, True, True, True],
            "DEFORM",
        ),
        ("build_isonet_backbone", "MODEL.RESNETS.STEM_OUT_CHANNELS", 128, "STEM_OUT_CHANNELS"),
        ("build_isonet_fpn_backbone", "MODEL.RESNETS.RES5_DILATION", 2, "RES5_DILATION"),
        ("build_isonet_fpn_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res5"], "OUT_FEATURES"),
        ("build_retinanet_isonet_fpn_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"], "res5"),
    ],
)
def test_what_cannot_be_honored_is_refused(builder, key, value, named):
    with pytest.raises(ISONetError) as error:
        build_backbone(make_cfg(builder, **{key: value}))
    assert named in str(error.value)


def test_a_config_without_our_keys_says_how_to_get_them():
    from detectron2.config import get_cfg as stock

    cfg = stock()
    cfg.MODEL.BACKBONE.NAME = "build_isonet_backbone"
    with pytest.raises(ISONetError, match="add_isonet_config"):
        build_backbone(cfg, ShapeSpec(channels=3))


def test_a_family_is_chosen_by_its_name_alone(monkeypatch):
    cfg = make_cfg("build_isonet_backbone")
    cfg.MODEL.ISONET.FAMILY = "other"
    with pytest.raises(ISONetError, match=r"MODEL\.ISONET\.FAMILY is one of \['fixup', 'isonet'\]"):
        build_backbone(cfg)

    class Other(StagedNetwork):
        def __init__(self, depth, options, *, in_channels, **arguments):
            block = partial(Block, depth, ISONetOptions())
            super().__init__(depth, Stem(in_channels, ISONetOptions()), block, None, **arguments)

    none = dataclasses.make_dataclass("NoOptions", [])
    monkeypatch.setitem(FAMILIES, "other", dataclasses.replace(ISONET, network=Other, options=none))
    assert isinstance(build_backbone(cfg), Other)
    cfg.MODEL.ISONET.NORM = "BN"
    with pytest.raises(ISONetError, match=r"MODEL\.ISONET\.NORM is not for the family"):
        build_backbone(cfg)


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("features", [["res5"], ["res4", "res5"], ["stem", "res2"]])
def test_dilated_resnets_of_basic_blocks(depth, features):
    """The undilated network's weights and names, at stride 16."""
    cfg = make_cfg("build_dilated_resnet_backbone", depth)
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = features
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    net = build_backbone(cfg)
    assert list(net.output_shape()) == features
    assert not any(p.requires_grad for p in net.res2.parameters())
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    plain = build_backbone(cfg)
    assert net.state_dict().keys() == plain.state_dict().keys()
    if "res5" in features:
        assert net.output_shape()["res5"].stride == 16
        assert net(torch.randn(1, 3, 64, 96))["res5"].shape[2:] == (4, 6)


def test_a_dilated_stage_sees_twice_as_far_and_nothing_else_changes():
    """Of a dilated res5, the pixels at even places of an input that is zero elsewhere see what the
    undilated stage, at stride 1, sees of the same values packed together."""
    cfg = make_cfg("build_dilated_resnet_backbone", 34)
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    dilated = build_backbone(cfg).res5.double().eval()
    cfg.MODEL.RESNETS.RES5_DILATION = 1
    plain = build_backbone(cfg).res5.double().eval()
    plain.load_state_dict(dilated.state_dict())
    plain[0].conv1.stride = plain[0].shortcut.stride = (1, 1)
    packed = torch.randn(1, 256, 6, 7, dtype=torch.float64)
    spread = torch.zeros(1, 256, 12, 14, dtype=torch.float64)
    spread[:, :, ::2, ::2] = packed
    with torch.no_grad():
        torch.testing.assert_close(dilated(spread)[:, :, ::2, ::2], plain(packed))


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("stride", ["layer", "undilated"])
def test_the_grams_stride_of_a_dilated_stage(depth, stride):
    cfg = make_cfg("build_isonet_backbone", depth)
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    cfg.MODEL.ISONET.ORTHO_STRIDE = stride
    net = build_backbone(cfg)
    conv = net.res5[0].conv2 if depth >= 50 else net.res5[0].conv1
    assert conv.stride == (1, 1)
    assert conv.gram_stride == ((2, 2) if stride == "undilated" else (1, 1))
    others = [m for n, m in net.named_modules() if hasattr(m, "gram_stride") and m is not conv]
    assert all(m.gram_stride == m.stride for m in others)
    cfg.MODEL.ISONET.ORTHO_STRIDE = "both"
    with pytest.raises(ISONetError, match="ORTHO_STRIDE"):
        build_backbone(cfg)


def test_deeplabs_keys_are_honored_or_refused_by_name():
    cfg = make_cfg("build_isonet_backbone", 50)
    add_deeplab_config(cfg)
    with pytest.raises(ISONetError, match="STEM_TYPE of an ISONet is 'basic', not 'deeplab'"):
        build_backbone(cfg)
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    cfg.MODEL.RESNETS.RES4_DILATION, cfg.MODEL.RESNETS.RES5_DILATION = 2, 4
    cfg.MODEL.ISONET.ORTHO_STRIDE = "undilated"
    net = build_backbone(cfg)
    assert [block.conv2.dilation[0] for block in net.res5] == [4, 8, 16]
    assert {s.stride for n, s in net.output_shape().items() if n != "res2"} == {8}
    firsts = [getattr(net, name)[0].conv2 for name in ("res3", "res4", "res5")]
    assert [conv.gram_stride for conv in firsts] == [(2, 2)] * 3
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    with pytest.raises(ISONetError, match=r"MODEL\.RESNETS\.RES4_DILATION"):
        build_backbone(cfg)
