import collections
import pickle

import numpy as np
import pytest
import torch
from support import REPOSITORY, Trap, authors_state, run_command, run_tool

from isonet_det import ISONet, ISONetError, ISONetOptions, load_backbone
from isonet_det.weights.loader import network_of_checkpoint
from isonet_det.weights.names import parse_checkpoint, read_weights
from isonet_det.weights.reader import read_file
from isonet_det.weights.zoo import inspect, write_weights


def make(depth, residual=True, **extra):
    return ISONet(depth, ISONetOptions(residual=residual), **extra)


@pytest.fixture(scope="module")
def authors_18():
    return authors_state(make(18, num_classes=10))


def snapshot(state):
    """The authors' training snapshot."""
    return {"net": state, "optim": {"state": {}}, "epoch": 3, "test_accuracy": [1.0]}


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("depth", (18, 34, 50, 101))
def test_the_authors_names_of_every_depth(depth, residual):
    net = make(depth, residual, num_classes=10)
    state = authors_state(net)
    checkpoint = parse_checkpoint(state)
    assert checkpoint.source == "authors"
    assert str(checkpoint.network) == f"{'R-' if residual else ''}ISONet-{depth}"
    assert set(load_backbone(net, state)) == set(net.state_dict())
    again = make(depth, residual, num_classes=10)
    load_backbone(again, {"model": net.state_dict()})
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("wrap", [dict, snapshot, lambda s: {"model": s}])
@pytest.mark.parametrize("legacy", [True, False])
def test_torch_files_of_every_form(tmp_path, authors_18, wrap, legacy):
    path = tmp_path / "weights.any"  # the name tells nothing
    torch.save(wrap(authors_18), path, _use_new_zipfile_serialization=not legacy)
    net = make(18)
    load_backbone(net, path)
    assert torch.equal(net.stem.conv.weight, authors_18["module.stem.conv.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
@pytest.mark.parametrize("residual", [True, False])
def test_conversion_keeps_every_value(tmp_path, suffix, residual):
    state = authors_state(make(18, residual, num_classes=10))
    destination = tmp_path / f"out{suffix}"
    digest = write_weights(parse_checkpoint(snapshot(state)), destination)
    assert (tmp_path / f"out{suffix}.sha256").read_text() == f"{digest}  out{suffix}\n"
    assert {p.name for p in tmp_path.iterdir()} == {f"out{suffix}", f"out{suffix}.sha256"}
    direct, converted = make(18, residual), make(18, residual)
    load_backbone(direct, state)
    load_backbone(converted, destination.rename(tmp_path / "renamed"))
    for a, b in zip(direct.parameters(), converted.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("builder", ["build_isonet_backbone", "build_isonet_fpn_backbone"])
def test_stock_detectron2_reads_converted_files(tmp_path, authors_18, suffix, builder):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from isonet_det import get_cfg

    write_weights(parse_checkpoint(authors_18), tmp_path / f"w{suffix}")
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.RESNETS.DEPTH = 18
    features = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = features
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = (
        ["p2"] if "fpn" in builder else ["res5"]
    )
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(tmp_path / f"w{suffix}"))
    bottom_up = getattr(model.backbone, "bottom_up", model.backbone)
    expected = make(18)
    load_backbone(expected, authors_18)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(bottom_up.state_dict()[name], tensor), name


def unchanged(module, call):
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(ISONetError) as error:
        call()
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("have", "want", "named"),
    [
        ((34, True), (50, True), ("R-ISONet-34", "R-ISONet-50")),
        ((18, True), (34, True), ("R-ISONet-18", "R-ISONet-34")),
        ((34, True), (18, True), ("R-ISONet-34", "R-ISONet-18")),
        ((50, True), (101, True), ("R-ISONet-50", "R-ISONet-101")),
        ((18, False), (18, True), ("ISONet-18", "R-ISONet-18")),
        ((18, True), (18, False), ("R-ISONet-18", "asks for ISONet-18")),
    ],
)
def test_another_network_is_named(have, want, named):
    net = make(*want)
    message = unchanged(net, lambda: load_backbone(net, authors_state(make(*have))))
    assert all(name in message for name in named)


def test_batchnorm_weights_do_not_fit_an_isonet():
    import torchvision

    net = make(34)
    state = torchvision.models.resnet34().state_dict()
    message = unchanged(net, lambda: load_backbone(net, state))
    assert "ResNet-34" in message and "R-ISONet-34" in message


def test_a_missing_a_reshaped_and_an_extra_name_are_counted(authors_18):
    net = make(18)
    fewer = dict(authors_18)
    del fewer["module.s1.b1.f.a.weight"]
    message = unchanged(net, lambda: load_backbone(net, fewer))
    assert "missing names: 1, first res2.0.conv1.weight" in message
    more = {**authors_18, "module.s1.b1.f.z.weight": torch.zeros(1)}
    assert "unexpected names: 1" in unchanged(net, lambda: load_backbone(net, more))
    reshaped = {**authors_18, "module.s1.b1.f.a.weight": torch.zeros(64, 64, 1, 1)}
    assert "(64, 64, 1, 1)" in unchanged(net, lambda: load_backbone(net, reshaped))
    assert "no ISONet" in unchanged(net, lambda: load_backbone(net, {"x": torch.zeros(1)}))


def test_fewer_stages_take_what_they_need(authors_18):
    net = make(18, out_features=["res4"])
    assert len(load_backbone(net, authors_18)) == len(net.state_dict())


@pytest.mark.parametrize("save", ["torch", "pickle", "legacy"])
def test_a_file_that_would_run_code_is_refused_and_nothing_ran(tmp_path, authors_18, save):
    trap = tmp_path / "ran"
    content = {"model": {**authors_18, "x": Trap(trap)}}
    path = tmp_path / "weights.pth"
    if save == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
    with pytest.raises(ISONetError, match="could run code"):
        read_file(path)
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle", "safetensors"])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_files(tmp_path, authors_18, kind, keep):
    path = tmp_path / ("w" + (".safetensors" if kind == "safetensors" else ".pkl"))
    if kind in ("safetensors", "pickle"):
        write_weights(parse_checkpoint(authors_18), path)
    else:
        torch.save(authors_18, path, _use_new_zipfile_serialization=kind == "torch")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ISONetError, match="broken or cut short") as error:
        read_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "web page"),
        (b"hello there, no weights", "no weight file"),
        (pickle.dumps([1, 2]), "list"),
        (pickle.dumps({"a": 1}), "no named tensors"),
    ],
)
def test_what_is_no_weight_file(tmp_path, content, named):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(ISONetError, match=named):
        read_weights(path)
    with pytest.raises(ISONetError, match="not found"):
        read_weights(tmp_path / "none.pth")


def test_numpy_pickles_of_detectron2s_zoo(tmp_path):
    arrays = collections.OrderedDict((n, t.numpy()) for n, t in make(18).state_dict().items())
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "n": np.float32(1)}, 2))
    load_backbone(make(18), path)


def test_a_failed_write_leaves_the_old_file(tmp_path, authors_18, monkeypatch):
    destination = tmp_path / "w.pth"
    destination.write_text("old")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_weights(parse_checkpoint(authors_18), destination)
    assert destination.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ISONetError, match="suffix"):
        write_weights(parse_checkpoint(authors_18), tmp_path / "w.bin")


@pytest.mark.parametrize("residual", [True, False])
def test_inspect_tells_what_a_file_is(authors_18, residual):
    net = make(50, residual, num_classes=10)
    text = "\n".join(inspect(parse_checkpoint(net.state_dict())))
    for fact in (
        f"network: {'R-' if residual else ''}ISONet-50",
        "classes: 10",
        f"parameters: {sum(p.numel() for p in net.parameters()):,}",
        "exactly 0",
    ):
        assert fact in text
    assert "far from isometric" in "\n".join(inspect(parse_checkpoint(authors_18)))


TOOL = "convert_weights.py"


def test_the_command_converts_and_inspects(tmp_path, authors_18, suffix=".safetensors"):
    torch.save(snapshot(authors_18), tmp_path / "authors.bin")
    command = REPOSITORY / "tools" / TOOL
    result = run_command(command, "authors.bin", f"ours{suffix}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "network: R-ISONet-18" in result.stdout and "names: authors" in result.stdout
    digest = (tmp_path / f"ours{suffix}.sha256").read_text().split()[0]
    assert f"sha256 {digest}" in result.stdout
    before = sorted(tmp_path.iterdir())
    result = run_tool(TOOL, "--inspect", f"ours{suffix}", cwd=tmp_path)
    assert "names: detectron2" in result.stdout and "classes: 10" in result.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_refuses_in_one_line(tmp_path, authors_18):
    torch.save(authors_18, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "old.pth").write_text("old")
    whole = (tmp_path / "whole.pth").read_bytes()
    result = run_tool(TOOL, "whole.pth", "whole.pth", cwd=tmp_path)
    assert result.returncode == 2 and "is the source itself" in result.stderr.splitlines()[-1]
    assert (tmp_path / "whole.pth").read_bytes() == whole
    for source, named in (("cut.pth", "cut short"), ("none.pth", "no such file")):
        result = run_tool(TOOL, source, "old.pth", cwd=tmp_path)
        assert result.returncode == 2 and named in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert (tmp_path / "old.pth").read_text() == "old"


@pytest.mark.parametrize("last", ["res3", "res4"])
def test_a_network_of_fewer_stages_is_what_its_file_says(last):
    net = ISONet(18, out_features=[last])
    again = network_of_checkpoint(parse_checkpoint(net.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x)[last], net(x)[last])
