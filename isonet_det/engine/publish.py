"""A trained detector as files that others can use: weights, config, classes, a model card, a record
of the model zoo."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from safetensors.torch import save

from ..analysis.curves import read_metrics
from ..config import get_cfg, merge_config_file
from ..errors import ISONetError
from ..files import sha256_of, write_whole
from ..weights.names import parse_checkpoint
from ..weights.reader import read_file
from ..weights.zoo import Record
from .run_info import read_run_info

COPIED = ("config.yaml", "metrics.json", "run.json", "log.txt")
METRICS = ("bbox/AP", "segm/AP", "keypoints/AP")


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
    """Write a run's detector to ``OUTPUT_DIR/NAME``: weights (tensors only) as safetensors and
    .pth with their hash in the name, config, metrics, log, environment, class names, a model card.

    Returns:
        the record for the model zoo.
    """
    cfg = get_cfg()
    merge_config_file(cfg, os.path.join(run, "config.yaml"))
    content = read_file(os.path.join(run, weights))
    checkpoint = parse_checkpoint(content, os.path.join(run, weights))
    metrics = _final_metrics(run)
    spread = [metrics, *map(_final_metrics, repeats)]
    folder = Path(output_dir, name)
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.detach().cpu().contiguous() for n, t in content["model"].items()}
    classes = content.get("classes")
    path = folder / f"{name}.pth"
    with write_whole(path) as f:
        torch.save({"model": state, "classes": classes}, f)
    digest = sha256_of(path)
    path = path.rename(folder / f"{name}-{digest[:8]}.pth")
    with write_whole(folder / f"{name}-{digest[:8]}.safetensors") as f:
        f.write(save(state, metadata={"format": "pt", "classes": json.dumps(classes)}))
    for file in COPIED:
        if os.path.isfile(os.path.join(run, file)):
            shutil.copy(os.path.join(run, file), folder / file)
    with write_whole(folder / "classes.json") as f:
        f.write((json.dumps(classes, indent=1) + "\n").encode())
    record = Record(
        name=name,
        network=str(checkpoint.network),
        dataset=", ".join(cfg.DATASETS.TRAIN),
        metrics={key: round(value, 2) for key, value in metrics.items()},
        license=license_name,
        source=url or str(path.resolve()),
        bytes=path.stat().st_size,
        sha256=digest,
    )
    parameters = sum(t.numel() for t in state.values())
    card = _model_card(cfg, record, run, spread, parameters, classes or [])
    with write_whole(folder / "README.md") as f:
        f.write(card.encode())
    return record


def write_record(record: Record, config_file: str, zoo: Path) -> Path:
    """Add a detector to a model zoo: its record and its config.

    Args:
        record: of the detector.
        config_file: the whole config of its run.
        zoo: folder of detectors' records.
    """
    zoo.mkdir(parents=True, exist_ok=True)
    with write_whole(zoo / f"{record.name}.yaml") as f:
        f.write(Path(config_file).read_bytes())
    path = zoo / f"{record.name}.json"
    with write_whole(path) as f:
        content = {key: value for key, value in asdict(record).items() if value}
        f.write((json.dumps(content, indent=2) + "\n").encode())
    return path


def _final_metrics(run: str) -> dict[str, float]:
    """AP of a finished run."""
    if not os.path.isfile(os.path.join(run, "model_final.pth")):
        raise ISONetError(f"{run} holds no finished run: there is no model_final.pth in it")
    latest: dict[str, Any] = {}
    for row in read_metrics(run):
        latest.update(row)
    metrics = {name: latest[name] for name in METRICS if name in latest}
    if not metrics:
        raise ISONetError(f"the run in {run} was never evaluated: no AP in its metrics.json")
    return metrics


def _model_card(
    cfg: CfgNode,
    record: Record,
    run: str,
    spread: Sequence[dict[str, float]],
    parameters: int,
    classes: Sequence[dict[str, Any]],
) -> str:
    rows, info = read_metrics(run), read_run_info(run)
    seconds = [row["time"] for row in rows if "time" in row]
    memory = [row["max_mem_mb"] for row in rows if "max_mem_mb" in row]
    hours = [row["hours"] for row in rows if "hours" in row]
    solver = cfg.SOLVER
    batch = solver.IMS_PER_BATCH
    images = f"{solver.MAX_ITER} iterations of {batch} images"
    numbers = []
    for name in spread[0]:
        values = [metrics[name] for metrics in spread if name in metrics]
        deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        numbers.append(f"| {name} | {np.mean(values):.2f}{deviation} | {len(values)} |")
    lines = [
        f"# {record.name}",
        "",
        f"{cfg.MODEL.META_ARCHITECTURE} with {record.network}, {parameters:,} parameters, trained "
        f"with isonet_det {info.get('isonet_det', '')} (commit {info.get('commit')}).",
        "",
        "```python",
        "from isonet_det import model_zoo",
        f'model = model_zoo.get("{record.name}", trained=True)',
        "```",
        "",
        "## Data",
        f"Trained on {record.dataset}, evaluated on {', '.join(cfg.DATASETS.TEST)}; "
        f"{len(classes)} classes: {', '.join(c['name'] for c in classes)}.",
        "",
        "## Recipe",
        f"{images}, learning rate {solver.BASE_LR}, schedule {solver.LR_SCHEDULER_NAME} "
        f"{tuple(solver.STEPS)}, initial weights {cfg.MODEL.WEIGHTS or 'none'}, gamma "
        f"{cfg.MODEL.ISONET.ORTHO_COEFF}, seed {cfg.SEED}. Every key: config.yaml.",
        "",
        "## Results",
        "| metric | mean | runs |",
        "|---|---|---|",
        *numbers,
        "",
        "## Cost",
        f"{info.get('processes', '?')} x {info.get('device', 'unknown device')}, PyTorch "
        f"{info.get('torch', '?')}, Detectron2 {info.get('detectron2', '?')}: "
        f"{np.median(seconds) if seconds else float('nan'):.3f} s an iteration, "
        f"{hours[-1] if hours else float('nan'):.2f} hours"
        + (f", {max(memory):.0f} MiB at the most on a device" if memory else "")
        + ".",
        "",
        "## Intended use",
        "Detection of the classes above on photos like those of the data set. It was not tested "
        "for safety-critical use, for people's identification, or on other kinds of photos; its "
        "errors and biases are those of its data.",
        "",
        "## License",
        f"{record.license}. The data set has its own.",
        "",
    ]
    return "\n".join(lines)
