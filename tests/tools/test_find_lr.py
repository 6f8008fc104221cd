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


@pytest.mark.parametrize(("words", "named"), [
    (("--lowest", "1e38", "--highest", "2e38"), "expected a lower one"),  # it diverges at once
    (("--lowest", "1"), "expected"), (("--lowest", "0"), "expected"),
])  # fmt: skip
def test_a_sweep_that_cannot_be_is_one_line(tmp_path, words, named):
    data = ("DATASETS.TRAIN", "('shapes_tiny',)", "DATASETS.TEST", "()", *TINY)
    command = ["find_lr.py", "--config-file", "quickstart.yaml", *words, *data]
    assert named in tool_refuses(*command, cwd=tmp_path)
