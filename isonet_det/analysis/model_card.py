"""A trained detector as files for others: weights, config, classes, a model card, a zoo record."""

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..config import get_cfg, merge_config_file
from ..errors import ISONetError
from ..files import sha256_of, write_file, write_whole
from ..modeling.detectron2 import ortho_coeff
from ..weights.names import parse_checkpoint
from ..weights.reader import read_file
from ..weights.zoo import Record, records
from .curves import read_metrics, read_run_info

COPIED = ("config.yaml", "metrics.json", "run.json", "log.txt")
METRICS = ("bbox/AP", "segm/AP", "keypoints/AP")
CARD = Path(__file__).with_suffix(".md")


def publish_detector(
    run: str,
    name: str,
    output_dir: str,
    *,
    repeats: Sequence[str] = (),
    weights: str = "model_final.pth",
    url: str = "",
    license_name: str = "MIT",
) -> Record:
    """Write a run's detector to ``OUTPUT_DIR/NAME``; ``repeats`` are runs of other seeds."""
    from safetensors.torch import save

    if not re.fullmatch(r"[\w.-]+", name) or name in records():
        raise ISONetError(f"name of a detector: expected a new one of letters and -, got {name!r}")
    cfg = get_cfg()
    merge_config_file(cfg, os.path.join(run, "config.yaml"))
    others = {os.path.realpath(folder) for folder in repeats} - {os.path.realpath(run)}
    spread = [_metrics(folder, weights) for folder in (run, *sorted(others))]
    content = read_file(os.path.join(run, weights))
    network = parse_checkpoint(content, os.path.join(run, weights)).network
    folder = Path(output_dir, name)
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.detach().cpu().contiguous() for n, t in content["model"].items()}
    classes = content.get("classes")
    path = folder / f"{name}.pth"
    with write_whole(path) as f:
        torch.save({"model": state, "classes": classes}, f)
    digest = sha256_of(path)
    path = path.rename(folder / f"{name}-{digest[:8]}.pth")
    record = Record(
        name=name,
        network=str(network),
        dataset=", ".join(cfg.DATASETS.TRAIN),
        metrics={key: round(value, 2) for key, value in spread[0].items()},
        license=license_name,
        source=url or str(path.resolve()),
        bytes=path.stat().st_size,
        sha256=digest,
    )
    parameters = sum(t.numel() for t in state.values())
    names = json.dumps(classes)
    for file, written in (
        (path.with_suffix(".safetensors").name, save(state, {"format": "pt", "classes": names})),
        ("classes.json", json.dumps(classes, indent=1) + "\n"),
        ("README.md", _card(cfg, record, run, spread, parameters, classes or [])),
    ):
        write_file(folder / file, written)
    for file in COPIED:
        if os.path.isfile(os.path.join(run, file)):
            shutil.copy(os.path.join(run, file), folder / file)
    return record


def write_record(record: Record, config_file: str, zoo: Path) -> Path:
    """Add a detector to a model zoo: its record, and the whole config of its run."""
    zoo.mkdir(parents=True, exist_ok=True)
    write_file(zoo / f"{record.name}.yaml", Path(config_file).read_bytes())
    path = zoo / f"{record.name}.json"
    content = {key: value for key, value in asdict(record).items() if value}
    write_file(path, json.dumps(content, indent=2) + "\n")
    return path


def _metrics(run: str, weights: str) -> dict[str, float]:
    """Of a run's last evaluation of these weights; of the best, that which made them so."""
    if not os.path.isfile(os.path.join(run, "model_final.pth")):
        raise ISONetError(f"{run} holds no finished run: there is no model_final.pth in it")
    best = weights == "model_best.pth"
    until = read_file(os.path.join(run, weights))["iteration"] if best else math.inf
    latest: dict[str, Any] = {}
    for row in read_metrics(run):
        latest.update(row if row["iteration"] <= until else {})
    prefix = "ema/" if weights.startswith("ema") else ""
    metrics = {name: latest.get(prefix + name, math.nan) for name in METRICS}
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if not metrics:
        raise ISONetError(f"the run in {run} was never evaluated: no AP in its metrics.json")
    return metrics


def _card(
    cfg: CfgNode,
    record: Record,
    run: str,
    spread: Sequence[dict[str, float]],
    parameters: int,
    classes: Sequence[dict[str, Any]],
) -> str:
    rows, solver = read_metrics(run), cfg.SOLVER
    facts = ("isonet_det", "commit", "processes", "device", "torch", "detectron2")
    numbers = []
    for name in spread[0]:
        values = [metrics[name] for metrics in spread if name in metrics]
        deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        numbers.append(f"| {name} | {np.mean(values):.2f}{deviation} | {len(values)} |")
    costs = []
    for key, most, text in (
        ("time", np.median, "{:.3f} s an iteration"),
        ("hours", max, "{:.2f} hours"),
        ("max_mem_mb", max, "{:.0f} MiB at the most on a device"),
    ):
        values = [r[key] for r in rows if key in r]
        costs += [text.format(most(values))] if values else []
    steps = f" {tuple(solver.STEPS)}" if "MultiStep" in solver.LR_SCHEDULER_NAME else ""
    return CARD.read_text().format(
        record=record,
        cfg=cfg,
        gamma=ortho_coeff(cfg),
        solver=solver,
        parameters=parameters,
        info={**dict.fromkeys(facts, "?"), **read_run_info(run)},
        test=", ".join(cfg.DATASETS.TEST),
        classes=f"{len(classes)} classes: {', '.join(c['name'] for c in classes)}",
        schedule=f"{solver.LR_SCHEDULER_NAME}{steps}",
        weights=cfg.MODEL.WEIGHTS or "none",
        numbers="\n".join(numbers),
        cost=", ".join(costs) or "not measured",
    )
