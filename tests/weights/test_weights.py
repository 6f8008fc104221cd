import pickle

import numpy as np
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone
from detectron2.utils.file_io import PathHandler, PathManager
from support import authors_state, config, tool, tool_refuses

from isonet_det import ISONet, ISONetError, ISONetOptions, build_model, get_cfg, load_backbone
from isonet_det.weights.loader import load_weights
from isonet_det.weights.names import parse_checkpoint, read_weights
from isonet_det.weights.zoo import write_weights


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


def test_other_classes_reinitialize_the_heads_and_name_them(tmp_path, caplog):
    source, path = detector(), str(tmp_path / "four.pth")
    torch.save({"model": source.state_dict()}, path)
    model = detector("MODEL.ROI_HEADS.NUM_CLASSES", "7")
    with caplog.at_level("INFO"):
        load_weights(model, path)
    assert "of another shape: roi_heads.box_predictor" in caplog.messages[-1]
    assert torch.equal(model.roi_heads.box_head.fc1.weight, source.roi_heads.box_head.fc1.weight)
    with pytest.raises(ISONetError, match="does not fit"):
        load_weights(model, path, whole=True)


@pytest.mark.parametrize("part", ["fpn of a detector", "fpn of an fpn", "network of a detector"])
def test_a_part_is_filled_from_what_contains_it(tmp_path, caplog, part):
    source, path = detector(), str(tmp_path / "model_final.pth")
    for parameter in source.parameters():
        parameter.data.normal_()
    file = source if part.endswith("detector") else source.backbone
    torch.save({"model": file.state_dict()}, path)
    found, expected = (d.backbone if part[0] == "f" else d.backbone.bottom_up for d in
                       (detector(), source))  # fmt: skip
    with caplog.at_level("INFO"):
        load_weights(found, path, whole=True)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert "initialized: nothing" in caplog.messages[-1]


class Bucket(PathHandler):
    def _get_supported_prefixes(self):
        return ["bucket://"]

    def _get_local_path(self, path, force=False, **kwargs):
        return path.removeprefix("bucket://here")


def test_any_registered_handler_is_an_address(imagenet_18):
    PathManager.register_handler(Bucket(), allow_override=True)
    load_weights(ISONet(18), f"bucket://here{imagenet_18}")


@pytest.mark.parametrize("depth", [34, 50])
def test_torchvisions_resnets_agree_at_every_stage(depth, tmp_path):
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    features = ["res2", "res3", "res4", "res5"]
    ours = build_backbone(config(
        "mask_rcnn_resnet50_fpn.yaml", "MODEL.BACKBONE.NAME", "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.OUT_FEATURES", features,
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth < 50 else 256,
    ))  # fmt: skip
    load_backbone(ours, theirs.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = ours(x)
        theirs.eval()
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for i, name in enumerate(features, 1):
            y = getattr(theirs, f"layer{i}")(y)
            assert (maps[name] - y).norm() / y.norm() < 1e-5, name
    write_weights(parse_checkpoint(theirs.state_dict()), tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").source == "torchvision"  # whose pixels it saw


def test_detectron2s_caffe2_names(tmp_path):
    """Its MSRA ResNets: BatchNorm folded to scale and shift, under Caffe2's names."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.NAME = "cpu", "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    net = build_backbone(cfg)
    names = {
        "stem.conv1.norm.weight": "res_conv1_bn_s", "stem.conv1.norm.bias": "res_conv1_bn_b",
        "stem.conv1.weight": "conv1_w", ".conv1": "_branch2a", ".conv2": "_branch2b",
        ".conv3": "_branch2c", ".shortcut": "_branch1", ".norm.weight": "_bn_s",
        ".norm.bias": "_bn_b", ".weight": "_w", ".": "_",
    }  # fmt: skip
    blobs = {"pred_w": np.zeros((1000, 2048), "float32"), "pred_b": np.zeros(1000, "float32")}
    for name, tensor in net.state_dict().items():
        if "running" not in name:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            blobs[name] = torch.randn_like(tensor).numpy()
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}))
    assert set(load_backbone(net, read_weights(str(path)))) == set(net.state_dict())
    assert torch.equal(net.res3[1].conv2.weight, torch.from_numpy(blobs["res3_1_branch2b_w"]))
    variance = net.stem.conv1.norm.running_var + net.stem.conv1.norm.eps
    torch.testing.assert_close(variance, torch.ones_like(variance))


def detector(*options):
    return build_model(config("quickstart.yaml", *options))


def make(depth, residual=True, **extra):
    return ISONet(depth, ISONetOptions(residual=residual), **extra)


@pytest.fixture(scope="module")
def authors_18():
    return authors_state(make(18, num_classes=10))


@pytest.mark.parametrize(("depth", "residual"), [(18, False), (34, True), (50, True), (101, False)])
def test_the_authors_names_of_every_depth(depth, residual):
    net = make(depth, residual, num_classes=10)
    state = authors_state(net)
    checkpoint = parse_checkpoint(state)
    assert checkpoint.source == "authors"
    assert str(checkpoint.network) == f"{'R-' if residual else ''}ISONet-{depth}"
    assert set(load_backbone(net, state)) == set(net.state_dict())


@pytest.mark.parametrize("wrap", [dict, lambda s: {"net": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("legacy", [True, False])
def test_torch_files_of_every_form(tmp_path, authors_18, wrap, legacy):
    path = tmp_path / "weights.any"  # the name tells nothing
    torch.save(wrap(authors_18), path, _use_new_zipfile_serialization=not legacy)
    net = make(18)
    load_backbone(net, path)
    assert torch.equal(net.stem.conv.weight, authors_18["module.stem.conv.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
def test_conversion_keeps_every_value_for_us_and_for_stock_detectron2(tmp_path, authors_18, suffix):
    path = tmp_path / f"out{suffix}"
    digest = write_weights(parse_checkpoint(authors_18), path)
    assert (tmp_path / f"out{suffix}.sha256").read_text() == f"{digest}  {path.name}\n"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, f"{path.name}.sha256"}
    direct, detector = make(18), build_model(config("mask_rcnn_risonet18_fpn.yaml"))
    load_backbone(direct, authors_18)
    found = [make(18)]
    if suffix != ".safetensors":
        found += [detector.backbone.bottom_up, make(18)]
        for model in (detector, found[-1]):
            DetectionCheckpointer(model).load(str(path))
    load_backbone(found[0], path.rename(tmp_path / "renamed"))
    for net in found:
        state = net.state_dict()
        assert all(torch.equal(state[n], t) for n, t in direct.state_dict().items())


def unchanged(module, state):
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(ISONetError) as error:
        load_backbone(module, state)
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("have", "want", "named"), [
    ((34, True), (50, True), "is R-ISONet-34, the config asks for R-ISONet-50"),
    ((18, True), (18, False), "is R-ISONet-18, the config asks for ISONet-18"),
    (None, (34, True), "is ResNet-34, the config asks for R-ISONet-34"),
])  # fmt: skip
def test_another_network_is_named(have, want, named):
    state = authors_state(make(*have)) if have else torchvision.models.resnet34().state_dict()
    assert named in unchanged(make(*want), state)


@pytest.mark.parametrize(("change", "named"), [
    ({"module.s1.b1.f.a.weight": None}, "missing names: 1, first res2.0.conv1.weight"),
    ({"module.s1.b1.f.z.weight": torch.zeros(1)}, "unexpected names: 1"),
    ({"module.s1.b1.f.a.weight": torch.zeros(64, 64, 1, 1)}, "(64, 64, 1, 1)"),
])  # fmt: skip
def test_a_missing_a_reshaped_and_an_extra_name_are_counted(authors_18, change, named):
    state = {n: t for n, t in {**authors_18, **change}.items() if t is not None}
    assert named in unchanged(make(18), state)
    assert "no ISONet" in unchanged(make(18), {"x": torch.zeros(1)})


def test_the_command_converts_and_inspects_and_refuses(tmp_path, authors_18):
    torch.save({"net": authors_18}, tmp_path / "authors.bin")
    text = tool("convert_weights.py", "authors.bin", "ours.safetensors", cwd=tmp_path)
    for words in ("network: R-ISONet-18", "names: authors", "parameters: ", "far from isometric"):
        assert words in text
    digest = (tmp_path / "ours.safetensors.sha256").read_text().split()[0]
    assert f"sha256 {digest}" in text
    (tmp_path / "cut.pth").write_bytes((tmp_path / "authors.bin").read_bytes()[:5000])
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    text = tool("convert_weights.py", "--inspect", "ours.safetensors", cwd=tmp_path)
    assert "names: detectron2" in text and "classes: 10" in text
    for source, named in (("ours.safetensors", "is the source itself"), ("cut.pth", "cut short")):
        words = ("convert_weights.py", source, "ours.safetensors")
        assert named in tool_refuses(*words, cwd=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
