#!/usr/bin/env python3
"""Check this machine against the recorded numbers and the CPU (tests/device), and measure it
(tools/benchmark.py): selftest.md and selftest.json. Exit status 1 where a check fails."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch

from isonet_det.cli import command
from isonet_det.engine.run_info import collect
from isonet_det.engine.step import flush_subnormals
from isonet_det.files import write_whole

CHECKS = Path(__file__).resolve().parents[1] / "tests" / "device"
STEPS = [
    "train", "--baseline", "mask_rcnn_resnet50_fpn.yaml", "--config-file",
    "mask_rcnn_risonet50_fpn.yaml", "--variant", "MODEL.CHANNELS_LAST True",
    "--variant", "MODEL.ISONET.CHECKPOINT_STAGES ('res3','res4','res5')",
]  # fmt: skip
AMP = "SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE"


def times(gpu: bool) -> dict[str, list[str]]:
    """What tools/benchmark.py is asked for; less on a CPU."""
    variants = [f"{AMP} bfloat16 MODEL.CHANNELS_LAST True"]
    if gpu:
        variants += [f"{AMP} float16", f"{AMP} float16 MODEL.CHANNELS_LAST True", f"{AMP} bfloat16"]
        variants += ["MODEL.COMPILE True", f"MODEL.COMPILE True {variants[0]}"]
    steps = [*STEPS, *(word for variant in variants for word in ("--variant", variant))]
    small = "--images 1 --height 192 --width 256 --repeats 2".split()
    heads = ["--opts", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"]  # else most of a CPU's step
    return {
        "SReLU": ["srelu", "--repeats", "2" if gpu else "1"],
        "penalty": ["penalty"] if gpu else ["penalty", "--depths", "18", "--repeats", "2"],
        "training step": [*steps, "--repeats", "10"] if gpu else [*steps, *small, *heads],
    }


class Outcomes:
    """A plugin of pytest's that keeps what the report shows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def add(self, check: str, outcome: str, result: str) -> None:
        words = {"passed": "yes", "skipped": "not run"}.get(outcome, "FAILED")
        self.rows.append({"check": check, "passed": words, "result": " ".join(result.split())})

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        result = dict(report.user_properties).get("result", "")
        if report.skipped:
            result = report.longrepr[2]
        elif report.failed and not result:
            result = str(getattr(report.longrepr, "reprcrash", report.longrepr))[-300:]
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        self.add(name, report.outcome, result)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.add(report.nodeid, "failed", str(report.longrepr)[-300:])


def machine(device: torch.device) -> dict[str, Any]:
    """Versions, device and driver."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    facts = collect(processes=1)
    for name in ("processes", "command"):
        del facts[name]
    facts["system"] = platform.platform()
    facts["cpu"] = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
    triton = importlib.util.find_spec("triton")
    facts["triton"] = importlib.metadata.version("triton") if triton else "none"
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()[:1]
        facts.update(gpus=torch.cuda.device_count(), driver=driver, cuda=torch.version.cuda)
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def markdown(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    failed = [row["check"] for row in report["checks"] if row["passed"] == "FAILED"]
    lines = [f"# Self-test: {'FAILED: ' + ', '.join(failed) if failed else 'passed'}", ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += ["", "## Checks", "", benchmark.table(report["checks"])]
    for title, rows in report["times"].items():
        lines += ["", f"## Times: {title}", "", benchmark.table(rows)]
    return "\n".join([*lines, ""])


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="output/selftest")
    parser.add_argument("--no-times", action="store_true", help="the checks only")
    parser.add_argument("-k", default="", help="only some of the checks, as pytest's -k")
    args = parser.parse_args()

    device, threads = benchmark.usable_device(args.device), torch.get_num_threads()
    flush_subnormals()
    os.makedirs(args.output, exist_ok=True)
    checks, measured = Outcomes(), {}
    words = [str(CHECKS), "--device", args.device, "-v", "-m", "slow or not slow", "-k", args.k]
    status = pytest.main([*words, "-p", "no:cacheprovider"], plugins=[checks])
    torch.set_num_threads(threads)  # the tests take one
    for title, asked in {} if args.no_times else times(device.type == "cuda").items():
        start = time.perf_counter()
        try:
            measured[title] = benchmark.measure([*asked, "--device", args.device])
        except Exception as error:  # the others go on
            checks.add(f"times: {title}", "failed", f"{type(error).__name__}: {error}"[:300])
        print(f"{title}: {time.perf_counter() - start:.0f} s", flush=True)
    report = {"machine": machine(device), "checks": checks.rows, "times": measured}
    text = markdown(report)
    for name, content in (("selftest.md", text), ("selftest.json", json.dumps(report, indent=1))):
        with write_whole(os.path.join(args.output, name)) as f:
            f.write(content.encode())
    print(text)
    return int(status != 0 or any(row["passed"] == "FAILED" for row in checks.rows))


if __name__ == "__main__":
    main()
