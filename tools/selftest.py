#!/usr/bin/env python3
"""Check this machine against the recorded numbers and the CPU (tests/device), and measure it
(tools/benchmark.py): selftest.md and selftest.json. Exit status 1 where a check fails."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch

from isonet_det.cli import command, tool_parser
from isonet_det.config import available_device
from isonet_det.engine.run_info import collect
from isonet_det.engine.step import flush_subnormals
from isonet_det.files import write_whole

CHECKS = Path(__file__).resolve().parents[1] / "tests" / "device"
STEP = "train --baseline mask_rcnn_resnet50_fpn.yaml --config-file mask_rcnn_risonet50_fpn.yaml"
AMP = "SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE"
LAST, COMPILE = "MODEL.CHANNELS_LAST True", "MODEL.COMPILE True"
VARIANTS = [
    LAST, "MODEL.ISONET.CHECKPOINT_STAGES ('res3','res4','res5')", f"{AMP} bfloat16 {LAST}",
]  # fmt: skip
GPU_VARIANTS = [
    f"{AMP} bfloat16", f"{AMP} float16", f"{AMP} float16 {LAST}", COMPILE,
    f"{COMPILE} {AMP} bfloat16 {LAST}",
]  # fmt: skip
# What tools/benchmark.py is asked for; on a CPU less, and not so many heads.
GPU_TIMES = {"SReLU": "srelu", "penalty": "penalty", "training step": f"{STEP} --repeats 10"}
CPU_TIMES = {
    "SReLU": "srelu --repeats 1",
    "penalty": "penalty --depths 18 --repeats 2",
    "training step": f"{STEP} --images 1 --height 192 --width 256 --repeats 2 "
    "--opts MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16",
}


class Outcomes:
    """A plugin of pytest's that keeps what the report shows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def add(self, check: str, passed: str, result: object) -> None:
        line = " ".join(str(result).split())[-300:]
        self.rows.append({"check": check, "passed": passed, "result": line})

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        result = dict(report.user_properties).get("result", "")
        if report.failed:
            message = getattr(report.longrepr, "reprcrash", report.longrepr)
            self.add(name, "FAILED", result or message)
        elif report.skipped:
            self.add(name, "not run", report.longrepr[2])
        elif report.when == "call":
            self.add(name, "yes", result)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.add(report.nodeid, "FAILED", report.longrepr)


def machine(gpu: bool) -> dict[str, Any]:
    """Versions, device and driver."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    facts = {k: v for k, v in collect(processes=1).items() if k not in ("processes", "command")}
    facts["system"] = platform.platform()
    facts["cpu"] = f"{[*names, platform.processor()][0]}, {os.cpu_count()} cores"
    if gpu:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()[:1]
        triton = find_spec("triton") and version("triton")
        facts.update(gpus=torch.cuda.device_count(), driver=driver, cuda=torch.version.cuda)
        facts.update(cudnn=torch.backends.cudnn.version(), triton=triton)
    return facts


def markdown(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    failed = [row["check"] for row in report["checks"] if row["passed"] == "FAILED"]
    lines = [f"# Self-test: {'FAILED: ' + ', '.join(failed) if failed else 'passed'}", ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    for title, rows in {"Checks": report["checks"], **report["times"]}.items():
        lines += ["", f"## {title}", "", benchmark.table(rows)]
    return "\n".join([*lines, ""])


@command
def main() -> int:
    parser = tool_parser(__doc__, output="output/selftest")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-times", action="store_true", help="the checks only")
    parser.add_argument("-k", default="", help="only some of the checks, as pytest's -k")
    args = parser.parse_args()

    args.device = available_device(args.device, "--device")
    gpu, threads = args.device != "cpu", torch.get_num_threads()
    flush_subnormals()
    os.makedirs(args.output, exist_ok=True)
    checks, times = Outcomes(), {}
    words = [str(CHECKS), "--device", args.device, "-v", "-m", "slow or not slow", "-k", args.k]
    status = pytest.main([*words, "-p", "no:cacheprovider"], plugins=[checks])
    torch.set_num_threads(threads)  # the tests take one
    for title, line in {} if args.no_times else (GPU_TIMES if gpu else CPU_TIMES).items():
        print(f"times: {title}", flush=True)
        what, *asked = line.split()
        if title == "training step":
            variants = [*VARIANTS, *(GPU_VARIANTS if gpu else ())]
            asked = [*(f"--variant={variant}" for variant in variants), *asked]
        try:
            times[f"Times: {title}"] = benchmark.measure([what, "--device", args.device, *asked])
        except Exception as error:  # the others go on
            checks.add(f"times: {title}", "FAILED", f"{type(error).__name__}: {error}")
    report = {"machine": machine(gpu), "checks": checks.rows, "times": times}
    text = markdown(report)
    for suffix, content in (("md", text), ("json", json.dumps(report, indent=1))):
        with write_whole(os.path.join(args.output, f"selftest.{suffix}")) as f:
            f.write(content.encode())
    print(text)
    return int(status != 0 or any(row["passed"] == "FAILED" for row in checks.rows))


if __name__ == "__main__":
    main()
