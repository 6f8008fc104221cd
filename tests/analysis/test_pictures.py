import json

import pytest
from support import run_tool

from isonet_det import ISONetError
from isonet_det.analysis.pictures import draw_comparison


def test_runs_are_compared_in_one_picture(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        rows = [{"iteration": i, "loss_cls": value / (i + 1)} for i in range(3)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "metrics.json").write_text(text)
    command = ["compare_runs.py", f"one={tmp_path}/a", f"two={tmp_path}/b"]
    out = ["--output", tmp_path / "curves.png"]
    result = run_tool(*command, "--metrics", "loss_cls", *out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ISONetError, match=r"a/metrics\.json has no bbox/AP"):
        draw_comparison({"one": f"{tmp_path}/a"}, ["bbox/AP"], "", f"{tmp_path}/no.png")
    with pytest.raises(ISONetError, match="there is no metrics"):
        draw_comparison({"one": f"{tmp_path}/c"}, ["loss_cls"], "", f"{tmp_path}/no.png")
