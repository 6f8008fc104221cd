import json

import pytest
from support import tool

from isonet_det import ISONetError
from isonet_det.analysis.curves import draw_comparison


def test_parameters_flops_and_activations_of_a_config(tmp_path):
    text = tool("analyze_model.py", "quickstart.yaml", "--height", 64, "--width", 96, cwd=tmp_path)
    assert "| backbone.bottom_up | 0.68 |" in text and "activations:" in text


def test_runs_are_compared_in_one_picture(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        rows = [json.dumps({"iteration": i, "loss_cls": value / (i + 1)}) for i in range(3)]
        (tmp_path / name / "metrics.json").write_text("\n".join(rows))
    words = ["one=a", "two=b", "--metrics", "loss_cls", "--output", "curves.png"]
    tool("compare_runs.py", *words, cwd=tmp_path)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    for name, metric, named in (("a", "bbox/AP", r"a/metrics\.json has no bbox/AP"),
                                ("c", "loss_cls", r"c/metrics\.json has no loss_cls")):  # fmt: skip
        with pytest.raises(ISONetError, match=named):
            draw_comparison({"one": f"{tmp_path}/{name}"}, [metric], "", f"{tmp_path}/no.png")
