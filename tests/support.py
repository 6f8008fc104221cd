"""What tests of several rooms share."""

import contextlib
import io
import itertools
import json
import logging
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils.logger import setup_logger
from records import official_weight

from isonet_det import model_zoo
from isonet_det.config import merge_options
from isonet_det.data.stream import end_workers
from isonet_det.solver.schedule import scale_to_processes

REPOSITORY = Path(__file__).resolve().parents[1]


def forget_loggers():
    """A log handler must not outlive what captures the output that it writes to, nor keep the
    messages of later tests from pytest."""
    setup_logger.cache_clear()
    for name in ("isonet_det", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def authors_state(net: torch.nn.Module, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """Random weights for ``net`` under the authors' names, as their files hold them."""
    letters = {"1": "a", "2": "b", "3": "c"}
    rules = [
        (r"^linear\.", "head.fc."),
        (r"^res(\d)\.(\d+)\.", lambda m: f"s{int(m[1]) - 1}.b{int(m[2]) + 1}."),
        (r"\.shortcut\.", ".proj."),
        ("res_multiplier", "f.shared_scalar.scale"),
        (r"\.conv(\d)\.", lambda m: f".f.{letters[m[1]]}."),
        (r"\.activation(\d)\.", lambda m: f".f.{letters[m[1]]}_relu."),
        (r"\.activation\.", ".relu."),
    ]
    state = {}
    for name, tensor in net.state_dict().items():
        for ours, theirs in rules:
            name = re.sub(ours, theirs, name)
        state[prefix + name] = official_weight(name, list(tensor.shape)).float()
    return state


def environment(**more) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **more}


def run_command(*words, cwd=None, **more) -> subprocess.CompletedProcess:
    """Run ``python WORDS`` as a user would, and return its output."""
    command, env = [sys.executable, "-W", "ignore", *map(str, words)], environment(**more)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def run_tool(name, *words, cwd) -> subprocess.CompletedProcess:
    """:func:`run_command` of a script in tools/ without the seconds that a new process takes to
    import torch."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv, path, folder = sys.argv, list(sys.path), os.getcwd()
    forget_loggers()
    sys.argv = [name, *map(str, words)]
    sys.path.insert(0, str(REPOSITORY / "tools"))
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(REPOSITORY / "tools" / name), run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv, sys.path[:] = argv, path
        os.chdir(folder)
        forget_loggers()
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def tool(name, *words, cwd) -> str:
    """What a tool that ends well prints."""
    result = run_tool(name, *words, cwd=cwd)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def tool_refuses(name, *words, cwd) -> str:
    """The line in which a tool refuses its words."""
    result = run_tool(name, *words, cwd=cwd)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    return result.stderr.splitlines()[-1]


def refuses(main, *words) -> str:
    """The line in which a command's function refuses its words."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    lines = error.getvalue().strip().splitlines()
    assert stop.value.code == 2 and lines[-1].startswith("error: "), lines
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def predictions(records, noise=0):
    """Records, and a detector's outputs for them: their objects, ``noise`` pixels away."""
    generator = torch.Generator().manual_seed(0)
    for record in records:
        size = record["height"], record["width"]
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += noise * torch.randn(boxes.shape, generator=generator)
        masks = torch.zeros(len(objects), *size, dtype=torch.bool)
        for mask, a in zip(masks, objects, strict=True):
            mask[:] = torch.from_numpy(polygons_to_bitmask(a["segmentation"], *size))
        instances = Instances(size, pred_boxes=Boxes(boxes), pred_masks=masks.roll(noise, 2))
        instances.pred_classes = torch.tensor([a["category_id"] for a in objects]).long()
        instances.scores = torch.rand(len(boxes), generator=generator)
        yield record, {"instances": instances}


def data_set(name, folder) -> str:
    return f"{name}={folder}/annotations.json:{folder}/images"


def config(name, *options):
    """A ready config on the CPU, with some words more."""
    cfg = model_zoo.get_config(name)
    merge_options(cfg, ["MODEL.DEVICE", "cpu", *map(str, options)])
    return cfg


TINY = [
    # Mask R-CNN on the drawn shapes, small enough for a test.
    "SOLVER.IMS_PER_BATCH", "2", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64", "TEST.EXPECTED_RESULTS", "[]", "TEST.EVAL_PERIOD", "0",
    "SOLVER.STEPS", "(2,)", "MODEL.ISONET.ORTHO_COEFF", "0.0",
    # Stages up to res3: a checkpoint of 6 MB where res5 makes it 100.
    "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3']", "MODEL.FPN.IN_FEATURES", "['res2', 'res3']",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[14, 20], [28, 40], [56, 72]]",
    "MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4']", "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']",
]  # fmt: skip
# Half of an iteration's time at that size: for the tests that it means something to.
PENALTY = ["MODEL.ISONET.ORTHO_COEFF", "0.0001"]


def without(words, options):
    """``KEY VALUE`` words without the keys among ``options``."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for pair in pairs if pair[0] not in options for word in pair]


def small_cfg(*options):
    return config("quickstart.yaml", *TINY, "DATASETS.TEST", "('shapes_tiny',)", *options)


def take(loader, count, skip=0):
    loader.batch_sampler.skip = skip
    iterator = iter(loader)
    taken = list(itertools.islice(iterator, count))
    end_workers(iterator)
    return taken


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_run(table, root, name, options=(), *, results, seed=1, processes=8, done=None):
    """The folder of a run of a table's row, as training leaves it after its last metrics
    ``results``, or cut after ``done`` iterations."""
    cfg = table.recipe(table.rows[name])
    folder = root / f"{name}-seed{seed}"
    merge_options(cfg, ["SEED", str(seed), "OUTPUT_DIR", str(folder), *options])
    cfg = scale_to_processes(cfg, processes)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "run.json").write_text(
        json.dumps({"processes": processes, "commit": "abc", "torch": "2", "device": "GPU"})
    )
    last = cfg.SOLVER.MAX_ITER if done is None else done
    rows = [
        {"iteration": i, "total_loss": 1.0, "time": 0.5, "hours": i / 1000, "max_mem_mb": 2048}
        for i in range(19, last, max(20, last // 10 // 20 * 20))
    ]
    rows.append({"iteration": last - 1, "total_loss": 1.0, "time": 0.5, "hours": last / 1000})
    if done is None:
        rows.append({"iteration": last, **results})
    (folder / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder
