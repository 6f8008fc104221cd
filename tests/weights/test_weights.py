import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.file_io import PathHandler, PathManager
from support import authors_state

from isonet_det import ISONet, ISONetError, ISONetOptions, get_cfg, load_backbone, model_zoo
from isonet_det.config import merge_options
from isonet_det.modeling.isonet import ISONET
from isonet_det.weights.loader import load_weights, resolve_weights
from isonet_det.weights.names import Checkpoint, Network, parse_checkpoint, read_weights
from isonet_det.weights.zoo import write_weights


def detector(*options):
    cfg = model_zoo.get_config("quickstart.yaml")
    merge_options(cfg, ["MODEL.DEVICE", "cpu", *options])
    return build_model(cfg)


@pytest.fixture(scope="module")
def imagenet_18(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "authors.pt"
    torch.save(authors_state(ISONet(18, num_classes=10)), path)
    return str(path)


def test_imagenet_weights_fill_the_backbone_inside_an_fpn(imagenet_18, caplog):
    model = detector()
    with caplog.at_level("INFO"):
        load_weights(model, imagenet_18)
    expected = ISONet(18, out_features=["res3"])  # the quickstart's has no res4
    load_backbone(expected, imagenet_18)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.backbone.bottom_up.state_dict()[name], tensor)
    line = caplog.messages[-1]
    assert "R-ISONet-18" in line and "classifier is not used" in line and "\n" not in line
    assert "proposal_generator.rpn_head.conv" in line and "bottom_up" not in line


def test_a_detector_comes_back_whole_and_identical(tmp_path):
    model = detector().eval()
    path = str(tmp_path / "model_final.pth")
    torch.save({"model": model.state_dict(), "iteration": 3}, path)
    other = detector().eval()
    load_weights(other, path, whole=True)
    image = {"image": torch.randint(0, 255, (3, 96, 96)).float()}
    with torch.no_grad():
        a, b = model([image])[0]["instances"], other([image])[0]["instances"]
    assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    assert torch.equal(a.scores, b.scores)


def test_other_classes_reinitialize_the_heads_and_name_them(tmp_path, caplog):
    path = str(tmp_path / "four.pth")
    source = detector()
    torch.save({"model": source.state_dict()}, path)
    model = detector("MODEL.ROI_HEADS.NUM_CLASSES", "7")
    with caplog.at_level("INFO"):
        load_weights(model, path)
    assert "of another shape: roi_heads.box_predictor" in caplog.messages[-1]
    assert torch.equal(model.roi_heads.box_head.fc1.weight, source.roi_heads.box_head.fc1.weight)
    with pytest.raises(ISONetError, match="does not fit"):
        load_weights(model, path, whole=True)


@pytest.mark.parametrize("wrap", ["detector", "backbone"])
def test_a_bare_fpn_takes_a_detectors_fpn_too(tmp_path, caplog, wrap):
    source, path = detector(), str(tmp_path / "model_final.pth")
    for parameter in source.parameters():
        parameter.data.normal_()
    torch.save({"model": (source if wrap == "detector" else source.backbone).state_dict()}, path)
    backbone = detector().backbone
    with caplog.at_level("INFO"):
        load_weights(backbone, path, whole=True)
    expected = source.backbone.state_dict()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert "initialized: nothing" in caplog.messages[-1]


def test_a_bare_network_takes_a_detectors(tmp_path):
    source, net = detector(), ISONet(18, out_features=["res3"])
    torch.save({"model": source.state_dict()}, tmp_path / "model_final.pth")
    load_weights(net, str(tmp_path / "model_final.pth"), whole=True)
    assert torch.equal(net.res3[1].conv2.weight, source.backbone.bottom_up.res3[1].conv2.weight)


def test_evaluation_needs_a_detector(imagenet_18):
    for address in ("", imagenet_18):
        with pytest.raises(ISONetError, match="trained detector"):
            load_weights(detector(), address, whole=True)


@pytest.mark.parametrize(
    "options",
    [
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"),
        ("MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"),
    ],
)
def test_other_pixels_than_the_weights_were_trained_on_are_refused(imagenet_18, options):
    with pytest.raises(ISONetError, match="was trained on RGB"):
        load_weights(detector(*options), imagenet_18)


def test_a_wrong_depth_starts_nothing(imagenet_18):
    model = detector("MODEL.RESNETS.DEPTH", "34")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ISONetError, match=r"R-ISONet-18, the config asks for R-ISONet-34"):
        load_weights(model, imagenet_18)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("nowhere.pth", "no such file"),
        ("s3://bucket/file", "scheme"),
        ("isonet://R-ISONet-51", "did you mean R-ISONet-50"),
        ("torchvision://vgg16", "model zoo has no"),
    ],
)
def test_addresses_that_lead_nowhere(address, named):
    with pytest.raises(ISONetError, match=named):
        resolve_weights(address)


class Bucket(PathHandler):
    """Somebody's own storage."""

    def _get_supported_prefixes(self):
        return ["bucket://"]

    def _get_local_path(self, path, force=False, **kwargs):
        return path.removeprefix("bucket://here")


def test_any_registered_handler_is_an_address(imagenet_18):
    PathManager.register_handler(Bucket(), allow_override=True)
    load_weights(ISONet(18), f"bucket://here{imagenet_18}")


def test_a_converted_file_still_says_whose_pixels_it_saw(tmp_path):
    checkpoint = parse_checkpoint(torchvision.models.resnet18().state_dict())
    write_weights(checkpoint, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").source == "torchvision"


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_torchvisions_resnets_agree_at_every_stage(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    features = ["res2", "res3", "res4", "res5"]
    merge_options(
        cfg,
        ["MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.STRIDE_IN_1X1", "False"]
        + ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64" if depth < 50 else "256"]
        + ["MODEL.RESNETS.OUT_FEATURES", str(features), "MODEL.BACKBONE.FREEZE_AT", "0"],
    )
    ours = build_backbone(cfg)
    load_backbone(ours, theirs.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = ours(x)
        theirs.eval()
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for name, layer in zip(
            features, (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True
        ):
            y = layer(y)
            assert (maps[name] - y).norm() / y.norm() < 1e-5, name


def test_detectron2s_caffe2_names(tmp_path):
    """Its MSRA ResNets: BatchNorm folded to scale and shift, under Caffe2's names."""
    import pickle

    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    net = build_backbone(cfg)
    blobs = {}
    for name, tensor in net.state_dict().items():
        if "running" in name:
            continue
        new = name.replace("stem.conv1.norm.weight", "res_conv1_bn_s").replace(
            "stem.conv1.norm.bias", "res_conv1_bn_b"
        )
        new = new.replace("stem.conv1.weight", "conv1_w")
        for i, letter in enumerate("abc", 1):
            new = new.replace(f".conv{i}", f"_branch2{letter}")
        new = new.replace(".shortcut", "_branch1").replace(".norm.weight", "_bn_s")
        new = new.replace(".norm.bias", "_bn_b").replace(".weight", "_w").replace(".", "_")
        blobs[new] = torch.randn_like(tensor).numpy()
    blobs.update(pred_w=np.zeros((1000, 2048), "float32"), pred_b=np.zeros(1000, "float32"))
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}))
    filled = load_backbone(net, read_weights(str(path)))
    assert set(filled) == set(net.state_dict())
    assert torch.equal(net.res3[1].conv2.weight, torch.from_numpy(blobs["res3_1_branch2b_w"]))
    variance = net.stem.conv1.norm.running_var + net.stem.conv1.norm.eps
    torch.testing.assert_close(variance, torch.ones_like(variance))
    # They see BGR, as Detectron2's own configs feed it.
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    model = build_model(cfg)
    load_weights(model, str(path))
    assert torch.equal(model.backbone.res3[1].conv2.weight, net.res3[1].conv2.weight)


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "options", "name"),
    [
        ((3, 4, 6, 3), False, {}, "R-ISONet-34"),
        ((3, 4, 6, 3), True, {}, "R-ISONet-50"),
        ((3, 4, 0, 0), True, {}, "R-ISONet-50/101"),
        ((1, 2, 3, 4), False, {}, "R-ISONet with blocks [1, 2, 3, 4]"),
        ((3, 4, 6, 3), False, {"activation": "relu"}, "R-ISONet-34 without SReLU"),
        ((3, 4, 6, 3), False, {"residual": False}, "ISONet-34"),
        ((3, 4, 6, 3), False, {"residual": False, "norm": "FrozenBN"}, "ISONet-34 with BatchNorm"),
        ((3, 4, 6, 3), False, {}, "ResNet-34 with SReLU without BatchNorm"),
        ((3, 4, 6, 3), False, {"activation": "relu", "norm": "FrozenBN"}, "ResNet-34"),
    ],
)
def test_a_network_is_named_and_built_from_its_parts(blocks, bottleneck, options, name):
    scalars = name.startswith("R-")
    options = ISONetOptions(has_res_multiplier=scalars, **options)
    network = Network(ISONET, options, blocks, bottleneck)
    assert str(network) == name
    if len(network.depths) == 1:
        state = network.build().state_dict()
        assert Checkpoint(state).network == network
        prefixed = {f"backbone.bottom_up.{n}": t for n, t in state.items()}
        assert Checkpoint(prefixed).network == network
    else:
        with pytest.raises(ISONetError, match="no whole ISONet or ResNet"):
            network.build()
