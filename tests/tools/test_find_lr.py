import pytest
from support import TINY, run_tool, tool_refuses


def test_the_tool_writes_curve_numbers_and_a_suggestion(tmp_path):
    result = run_tool(
        "find_lr.py", "--config-file", "quickstart.yaml", "--iterations", "5", "--output", "out",
        "--lowest", "1e-4", "--highest", "1e30", "DATASETS.TRAIN", "('shapes_tiny',)",
        "DATASETS.TEST", "()", *TINY, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    lines = (tmp_path / "out" / "find_lr.csv").read_text().splitlines()
    # It ends where the loss diverges.
    assert lines[0] == "rate,loss" and 2 < len(lines) < 6
    assert (tmp_path / "out" / "find_lr.png").stat().st_size > 1000
    assert float(result.stdout.split("SOLVER.BASE_LR ")[1].split()[0]) >= 1e-4 * 0.1


def test_a_sweep_that_diverges_at_once_is_one_line(tmp_path):
    line = tool_refuses(
        "find_lr.py", "--config-file", "quickstart.yaml", "--lowest", "1e38", "--highest", "2e38",
        "DATASETS.TRAIN", "('shapes_tiny',)", "DATASETS.TEST", "()", *TINY, cwd=tmp_path,
    )  # fmt: skip
    assert "--lowest 1e+38" in line and "expected a lower one" in line


@pytest.mark.parametrize("words", [("--lowest", "1"), ("--lowest", "0"), ("--iterations", "0")])
def test_a_sweep_that_cannot_be_is_one_line(tmp_path, words):
    result = run_tool("find_lr.py", "--config-file", "quickstart.yaml", *words, cwd=tmp_path)
    assert result.returncode == 2 and "expected" in result.stderr.splitlines()[-1]
