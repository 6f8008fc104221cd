import json

import pytest
import torch
from support import run_tool

from isonet_det.modeling.layers import SReLU
from isonet_det.selftest import checks, report
from isonet_det.selftest.checks import Check, DeviceReads, at_most

CPU = torch.device("cpu")


def failed(results):
    return [c for c in results if c.passed is not True]


def test_a_correct_machine_passes():
    for check in (checks.srelu, checks.no_synchronization):
        results = list(check(CPU))
        assert results and not failed(results)


def test_a_wrong_srelu_and_a_read_in_the_step_are_found(monkeypatch):
    plain = SReLU.forward
    monkeypatch.setattr(SReLU, "forward", lambda self, x: plain(self, x) * 1.001)
    assert failed(checks.srelu(CPU))

    def reading(self, x):
        return plain(self, x) if x.max().item() else x

    monkeypatch.setattr(SReLU, "forward", reading)
    (read,) = failed(checks.no_synchronization(CPU))
    assert "_local_scalar_dense" in read.result


def test_a_mask_as_an_index_is_a_read_and_numbers_are_none():
    x = torch.arange(6.0)
    with DeviceReads() as counted:
        x[torch.tensor([1, 2])] + x.sum()
        assert not counted.reads
        x[x > 3]
    assert len(counted.reads) == 1


@pytest.mark.parametrize("error", [0.0, 0.2, float("nan"), None])
def test_the_report_says_what_failed_and_the_exit_status_too(error, monkeypatch, tmp_path):
    def check(device):
        if error is None:
            raise RuntimeError("no such kernel")
        yield at_most("an error", error, 0.1)
        yield Check("two GPUs", None, "not run", "two GPUs")

    monkeypatch.setattr(report, "CHECKS", (check,))
    done = run_tool("selftest.py", "--device", "cpu", "--no-times", cwd=tmp_path)
    assert done.returncode == (0 if error == 0.0 else 1), done.stderr
    content = json.loads((tmp_path / "output/selftest/selftest.json").read_text())
    text = (tmp_path / "output/selftest/selftest.md").read_text()
    assert content["machine"]["torch"] == torch.__version__ and "cpu" in content["machine"]
    assert (content["checks"][0]["passed"] == "yes") == (error == 0.0)
    assert text.startswith("# Self-test: " + ("passed" if error == 0.0 else "FAILED"))
    if error is None:
        assert "no such kernel" in text


@pytest.mark.slow
def test_the_whole_self_test_passes_on_this_machine(tmp_path):
    done = run_tool("selftest.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    times = json.loads((tmp_path / "output/selftest/selftest.json").read_text())["times"]
    assert set(times) == {"SReLU", "penalty", "training step"}
