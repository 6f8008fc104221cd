import json

from conftest import REPOSITORY, run_tool


def test_runs_are_compared_in_one_picture(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        rows = [{"iteration": i, "loss_cls": value / (i + 1)} for i in range(3)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "metrics.json").write_text(text)
    command = [REPOSITORY / "tools" / "compare_runs.py", f"one={tmp_path}/a", f"two={tmp_path}/b"]
    out = ["--output", tmp_path / "curves.png"]
    result = run_tool(*command, "--metrics", "loss_cls", *out)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    result = run_tool(*command, "--metrics", "loss_cls", "bbox/AP", *out)
    assert result.returncode == 2
    assert (
        result.stderr.strip().splitlines()[-1] == f"error: {tmp_path}/a/metrics.json has no bbox/AP"
    )
