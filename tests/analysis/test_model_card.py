"""Publishing a run's detector, and having it back from the zoo."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import run_cfg, run_tool, train

from isonet_det import ISONetError, load_weights, model_zoo
from isonet_det.weights.loader import resolve_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish") / "run"
    train(run_cfg(folder, "SOLVER.MAX_ITER", "2"))
    (folder / "config.yaml").write_text(run_cfg(folder, "SOLVER.MAX_ITER", "2").dump())
    return folder


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    monkeypatch.setattr("isonet_det.weights.zoo.detectors_dir", lambda: tmp_path / "zoo")
    return tmp_path / "zoo"


def test_a_published_detector_comes_back_by_its_name(run, zoo, tmp_path):
    result = run_tool(
        "publish_detector.py", run, "shapes-18", "--output", "out", "--zoo", zoo,
        "--repeats", run, run, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "out" / "shapes-18"
    record = json.loads((zoo / "shapes-18.json").read_text())
    (weights,) = folder.glob("*.pth")
    assert record["sha256"].startswith(weights.stem.rsplit("-", 1)[1])
    assert resolve_weights("isonet://shapes-18") == str(weights)
    expected = torch.load(run / "model_final.pth")
    model = model_zoo.get("shapes-18", trained=True, device="cpu")
    for state in (model.state_dict(), load_file(weights.with_suffix(".safetensors"))):
        assert all(torch.equal(state[n], t) for n, t in expected["model"].items())
    assert model.classes == expected["classes"] == json.loads((folder / "classes.json").read_text())
    assert set(torch.load(weights)) == {"model", "classes"}
    card = (folder / "README.md").read_text()
    assert "R-ISONet-18" in card and "circle, square, triangle, star" in card
    assert "± 0.00 | 3 |" in card
    for name in ("config.yaml", "metrics.json"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()


def test_another_file_than_the_published_is_refused(run, zoo, tmp_path):
    run_tool("publish_detector.py", run, "mine", "--output", "out", "--zoo", zoo, cwd=tmp_path)
    (weights,) = (tmp_path / "out" / "mine").glob("*.pth")
    torch.save(torch.load(run / "model_final.pth"), weights)
    with pytest.raises(ISONetError, match="sha256"):
        model_zoo.get("mine", trained=True, device="cpu")
    with pytest.raises(ISONetError, match="did you mean mine"):
        load_weights(model_zoo.get("quickstart.yaml", device="cpu"), "isonet://mime")


def test_a_run_that_is_not_finished_is_not_published(run, zoo, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.yaml").write_text((run / "config.yaml").read_text())
    result = run_tool("publish_detector.py", "part", "x", "--zoo", zoo, cwd=tmp_path)
    assert result.returncode == 2 and "model_final.pth" in result.stderr.splitlines()[-1]
