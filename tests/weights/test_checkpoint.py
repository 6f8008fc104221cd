import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from support import REPOSITORY, authors_state, config, run_command, tool, tool_refuses

from isonet_det import ISONet, ISONetError, ISONetOptions, build_model, load_backbone
from isonet_det.weights.names import parse_checkpoint
from isonet_det.weights.zoo import write_weights


def make(depth, residual=True, **extra):
    return ISONet(depth, ISONetOptions(residual=residual), **extra)


@pytest.fixture(scope="module")
def authors_18():
    return authors_state(make(18, num_classes=10))


def snapshot(state):
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


@pytest.mark.parametrize("wrap", [dict, snapshot, lambda s: {"model": s}])
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
    digest = write_weights(parse_checkpoint(snapshot(authors_18)), path)
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
    torch.save(snapshot(authors_18), tmp_path / "authors.bin")
    command = REPOSITORY / "tools" / "convert_weights.py"
    result = run_command(command, "authors.bin", "ours.safetensors", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for words in ("network: R-ISONet-18", "names: authors", "parameters: ", "far from isometric"):
        assert words in result.stdout
    digest = (tmp_path / "ours.safetensors.sha256").read_text().split()[0]
    assert f"sha256 {digest}" in result.stdout
    (tmp_path / "cut.pth").write_bytes((tmp_path / "authors.bin").read_bytes()[:5000])
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    text = tool("convert_weights.py", "--inspect", "ours.safetensors", cwd=tmp_path)
    assert "names: detectron2" in text and "classes: 10" in text
    for source, named in (("ours.safetensors", "is the source itself"), ("cut.pth", "cut short")):
        words = ("convert_weights.py", source, "ours.safetensors")
        assert named in tool_refuses(*words, cwd=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
