import json

import pytest
import torch
from support import run_tool

from isonet_det import SReLU


@pytest.mark.parametrize("wrong", [False, True])
def test_the_report_says_what_failed_and_the_exit_status_too(wrong, tmp_path, monkeypatch):
    if wrong:
        plain = SReLU.forward
        monkeypatch.setattr(SReLU, "forward", lambda self, x: plain(self, x) * 1.001)
    words = ("--device", "cpu", "--no-times", "-k", "formulas and float32 or compile")
    done = run_tool("selftest.py", *words, cwd=tmp_path)
    assert done.returncode == wrong, done.stderr
    content = json.loads((tmp_path / "output/selftest/selftest.json").read_text())
    text = (tmp_path / "output/selftest/selftest.md").read_text()
    assert content["machine"]["torch"] == torch.__version__ and "cpu" in content["machine"]
    passed = [row["passed"] for row in content["checks"]]
    assert sorted(passed) == sorted(["FAILED" if wrong else "yes"] * 2 + ["not run"])
    assert text.startswith("# Self-test: " + ("FAILED: srelu has" if wrong else "passed"))
    assert "minutes of C++" in text and ("at most 1e-05" in text) == (not wrong)
