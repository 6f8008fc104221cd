"""All checks and times of a machine, in selftest.md and selftest.json."""

import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import find_config_file, get_cfg, merge_config_file, merge_options
from ..engine.run_info import collect
from ..files import write_whole
from . import checks, runs
from .checks import Check, DeviceReads
from .measure import (
    Subject,
    benchmark_penalty,
    benchmark_srelu,
    gemm_peak,
    interleaved,
    on_gpu,
    random_batch,
)

logger = logging.getLogger(__name__)

CHECKS: tuple[Callable[[torch.device], Iterator[Check]], ...] = (
    checks.authors_network,
    checks.authors_penalty,
    checks.penalty_gradient,
    checks.srelu,
    checks.training_step,
    checks.no_synchronization,
    runs.two_processes,
    runs.kill_and_resume,
)
_PASSED = {True: "yes", False: "FAILED", None: "not run"}
R_ISONET, RESNET = "mask_rcnn_risonet50_fpn.yaml", "mask_rcnn_resnet50_fpn.yaml"


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True).stdout.split()
    except OSError:
        lines = []
    return lines[0] if lines else "not known"


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, device and driver."""
    facts = collect(processes=1)
    facts = {
        name: facts[name] for name in ("isonet_det", "commit", "torch", "detectron2", "python")
    }
    facts.update(system=platform.platform(), cpu=_cpu(), threads=torch.get_num_threads())
    facts["device"] = str(device)
    if device.type == "cuda":
        facts["device"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
        facts.update(driver=_driver(), cuda=torch.version.cuda)
        facts["cudnn"] = torch.backends.cudnn.version()
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = "none"
    return facts


def _attempt(name: str, work: Callable[[], Iterable[Any]], done: list[Check]) -> list[Any]:
    """What ``work`` yields; what raises is a failed check, and the others go on."""
    start = time.perf_counter()
    results = []
    try:
        for result in work():
            results.append(result)
            if isinstance(result, Check):
                found, passed = f"{result.result} ({result.expected})", _PASSED[result.passed]
                logger.info("%s: %s; passed: %s", result.name, found, passed)
            else:
                cells = (f"{column} {_cell(value)}" for column, value in result.items())
                logger.info("%s: %s", name, ", ".join(cells))
        return results
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logger.exception("%s", name)
        done.append(Check(name, False, reason[:300], "no error"))
        return results
    finally:
        logger.info("%s: %.0f s", name, time.perf_counter() - start)


def _work(subject: Subject) -> dict[str, Any]:
    """What a step starts: kernels and their time on a GPU, operations on a CPU."""
    work = on_gpu(subject.train, subject.device)
    if work is None:
        with DeviceReads() as counted:
            subject.train()
        return {"operations": counted.operations}
    return {"kernels": work[0], "on the GPU, ms": 1e3 * work[1]}


def _on_gpu(result: dict[str, Any]) -> dict[str, float]:
    ours, formula = result["on_gpu"], result["formula_on_gpu"]
    if ours is None:
        return {}
    return {"on the GPU, ms": 1e3 * ours[1], "formula's on the GPU, ms": 1e3 * formula[1]}


def time_steps(device: torch.device) -> list[dict[str, Any]]:
    """A training step beside ResNet-50-FPN's, and the keys that change how it runs."""
    gpu = device.type == "cuda"
    images, height, width = (2, 800, 1216) if gpu else (1, 192, 256)
    # A CPU would spend most of a step in the heads.
    heads = "" if gpu else "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16"
    rows = {"ResNet-50-FPN": (RESNET, ""), "R-ISONet-50-FPN": (R_ISONET, "")}
    variants = ["MODEL.CHANNELS_LAST True", "MODEL.ISONET.CHECKPOINT_STAGES ('res3','res4','res5')"]
    for dtype in checks.half_types(device):
        amp = f"SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE {dtype}"
        variants += [*([amp] if gpu else []), f"{amp} MODEL.CHANNELS_LAST True"]
    if gpu:
        variants += ["MODEL.COMPILE True", f"MODEL.COMPILE True {variants[-1]}"]
    rows.update({f"R-ISONet-50-FPN, {words}": (R_ISONET, words) for words in variants})
    batch = random_batch(images, height, width)
    subjects = []
    for file, words in rows.values():
        cfg = get_cfg()
        merge_config_file(cfg, find_config_file(file))
        merge_options(cfg, ["MODEL.DEVICE", str(device), *f"{heads} {words}".split()])
        subjects.append(Subject(cfg, batch))
    counts = []
    for name, subject in zip(rows, subjects, strict=True):
        logger.info("first steps of %s", name)
        for _ in range(2 if gpu else 0):
            subject.train()  # from the third step on, all is compiled and recorded
        counts.append(_work(subject))
    calls = [subject.measured(subject.train) for subject in subjects]
    seconds = interleaved(calls, device, 10 if gpu else 2, 3 if gpu else 0)
    return [
        {
            "step": f"{name}, {images} x {height} x {width}",
            "ms": 1e3 * t,
            "relative": t / seconds[0],
            "peak MB": subject.peak / 1e6 if gpu else None,
            **work,
        }
        for name, t, subject, work in zip(rows, seconds, subjects, counts, strict=True)
    ]


def time_srelu(device: torch.device) -> Iterator[dict[str, Any]]:
    """SReLU beside the formula."""
    gpu = device.type == "cuda"
    for shape in [(2, 256, 200, 304), (2, 512, 100, 152)] if gpu else [(1, 64, 200, 304)]:
        r = benchmark_srelu(shape, device, 15)
        row = {"map": "x".join(map(str, shape)), "ms": 1e3 * r["ours"]}
        yield {**row, "formula ms": 1e3 * r["formula"], "ratio": r["ratio"], **_on_gpu(r)}


def time_penalty(device: torch.device) -> Iterator[dict[str, Any]]:
    """The penalty beside the formula, and how fast its products are."""
    gpu = device.type == "cuda"
    peak = gemm_peak(device)
    for depth in (18, 34, 50, 101) if gpu else (18,):
        r = benchmark_penalty(depth, device, 7 if gpu else 2)
        row = {"depth": depth, "ms": 1e3 * r["ours"], "formula ms": 1e3 * r["formula"]}
        row.update({"ratio": r["ratio"], "GFLOP/s": r["flops"] / 1e9})
        yield {**row, "of a product's": r["flops"] / peak, **_on_gpu(r)}


TIMES = {"SReLU": time_srelu, "penalty": time_penalty, "training step": time_steps}


def _cell(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([_cell(row[name]) for name in head] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def markdown(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    checked = report["checks"]
    failed = [row["check"] for row in checked if row["passed"] == "FAILED"]
    lines = [f"# Self-test: {'FAILED: ' + ', '.join(failed) if failed else 'passed'}", ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += ["", "## Checks", "", *_table(checked)]
    for title, rows in report["times"].items():
        lines += ["", f"## Times: {title}", "", *_table(rows)]
    return "\n".join([*lines, ""])


def run(device: torch.device, folder: str, times: bool = True) -> int:
    """Run everything and write selftest.md and selftest.json.

    Args:
        device: to be checked.
        folder: of the two files; it is made.
        times: whether times are measured too.

    Returns:
        0, or 1 where a check failed.
    """
    os.makedirs(folder, exist_ok=True)
    results: list[Check] = []
    for check in CHECKS:
        results += _attempt(check.__name__, partial(check, device), results)
    tables = {
        title: _attempt(f"times: {title}", partial(measure, device), results)
        for title, measure in (TIMES.items() if times else ())
    }
    report = {
        "machine": describe(device),
        "checks": [
            {
                "check": c.name,
                "passed": _PASSED[c.passed],
                "result": c.result,
                "expected": c.expected,
            }
            for c in results
        ],
        "times": {title: rows for title, rows in tables.items() if rows},
    }
    text = markdown(report)
    for name, content in (("selftest.md", text), ("selftest.json", json.dumps(report, indent=1))):
        with write_whole(os.path.join(folder, name)) as f:
            f.write(content.encode())
    print(text)
    return int(any(c.passed is False for c in results))
