import json
import shutil

import pytest
import torch
from runs import run_cfg, train
from safetensors.torch import load_file
from support import tool, tool_refuses

from isonet_det import ISONetError, load_weights, model_zoo
from isonet_det.weights.loader import resolve_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish") / "run"
    cfg = run_cfg(folder, "SOLVER.MAX_ITER", "2")
    train(cfg)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    monkeypatch.setattr("isonet_det.weights.zoo.detectors_dir", lambda: tmp_path / "zoo")
    return tmp_path / "zoo"


def test_a_published_detector_comes_back_by_its_name(run, zoo, tmp_path):
    publish = ["publish_detector.py", run, "mine", "--output", "out", "--zoo", zoo]
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / name)
    tool(*publish, "--repeats", run, "a", "b", cwd=tmp_path)
    folder = tmp_path / "out" / "mine"
    record = json.loads((zoo / "mine.json").read_text())
    (weights,) = folder.glob("*.pth")
    assert record["sha256"].startswith(weights.stem.rsplit("-", 1)[1])
    assert resolve_weights("isonet://mine") == str(weights)
    expected = torch.load(run / "model_final.pth")
    model = model_zoo.get("mine", trained=True, device="cpu")
    for state in (model.state_dict(), load_file(weights.with_suffix(".safetensors"))):
        assert all(torch.equal(state[n], t) for n, t in expected["model"].items())
    assert model.classes == expected["classes"] == json.loads((folder / "classes.json").read_text())
    assert set(torch.load(weights)) == {"model", "classes"}
    card = (folder / "README.md").read_text()
    for words in ("circle, square, triangle, star", "± 0.00 | 3 |", "WarmupCosineLR, initial"):
        assert words in card
    for name in ("config.yaml", "metrics.json"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()

    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())  # not finished
    words = ("publish_detector.py", ".", "x", "--zoo", zoo)
    assert "model_final.pth" in tool_refuses(*words, cwd=tmp_path)
    torch.save(expected, weights)  # another file than the published
    with pytest.raises(ISONetError, match="expected"):
        model_zoo.get("mine", trained=True, device="cpu")
    with pytest.raises(ISONetError, match="did you mean mine"):
        load_weights(model, "isonet://mime")
