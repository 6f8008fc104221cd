import contextlib
import io
import json
import logging
import os
import runpy
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the tests run in parallel processes
torch.set_flush_denormal(True)  # as in training
REPOSITORY = Path(__file__).resolve().parents[1]
# Real photos, where they are; the tests go further with them and pass without.
COCO_MINI = REPOSITORY.parent / "shared" / "data" / "coco_mini"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Data sets and downloads of the tests go to a folder of their own."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["ISONET_DET_CACHE"] = str(cache / "shapes")
    os.environ["FVCORE_CACHE"] = str(cache / "weights")
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from isonet_det.data import register_shapes
    from isonet_det.data.shapes import SPLITS

    for name in SPLITS:  # registered at import, for the user's own cache
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    # A set that evaluates in a moment.
    SPLITS["shapes_tiny"] = (3, 2)
    register_shapes()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def forget_loggers():
    """A log handler must not outlive what captures the output that it writes to, nor keep the
    messages of later tests from pytest."""
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    for name in ("isonet_det", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


@pytest.fixture(autouse=True)
def _loggers():
    yield
    forget_loggers()


@pytest.fixture(scope="session")
def official():
    """What the authors' network computes; see the file's README in the authors' terms: weights
    and inputs that anyone can make again."""
    with open(REPOSITORY / "tests" / "official_isonet.json") as f:
        return json.load(f)


def official_weight(name: str, shape: list[int]) -> torch.Tensor:
    """The reference weight of one parameter, by the authors' name."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    if name.endswith("srelu_bias"):
        noise = -0.5 + 0.3 * noise
    elif name.endswith("scale"):
        noise = 0.5 + 0.1 * noise
    elif name.endswith("fc.bias"):
        noise = 0.1 * noise
    else:
        noise = noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(noise)


def authors_state(net: torch.nn.Module, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """Random weights for ``net`` under the authors' names, as their files hold them."""
    import re

    state = {}
    for name, tensor in net.state_dict().items():
        name = re.sub(r"^linear\.", "head.fc.", name)
        name = re.sub(r"^res(\d)\.(\d+)\.", lambda m: f"s{int(m[1]) - 1}.b{int(m[2]) + 1}.", name)
        name = name.replace(".shortcut.", ".proj.").replace(
            "res_multiplier", "f.shared_scalar.scale"
        )
        name = re.sub(r"\.conv(\d)\.", lambda m: f".f.{' abc'[int(m[1])]}.", name)
        name = re.sub(r"\.activation(\d)\.", lambda m: f".f.{' abc'[int(m[1])]}_relu.", name)
        name = name.replace(".activation.", ".relu.")
        state[prefix + name] = official_weight(name, list(tensor.shape)).float()
    return state


def run_command(*words, cwd=None, env=None, timeout=300) -> subprocess.CompletedProcess:
    """Run ``python WORDS`` as a user would, and return its output."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


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


@pytest.fixture(scope="session")
def few_shapes(tmp_path_factory):
    """The --dataset argument of a COCO-format set of eight drawn images."""
    from isonet_det.data import render_shapes

    folder = tmp_path_factory.mktemp("few") / "set"
    render_shapes(folder, 8, 3)
    return f"few={folder}/annotations.json:{folder}/images"


def small_cfg(*options):
    """The quickstart's config at the size of a test."""
    from isonet_det import model_zoo
    from isonet_det.config import merge_options

    cfg = model_zoo.get_config("quickstart.yaml")
    merge_options(
        cfg, [*TINY, "MODEL.DEVICE", "cpu", "DATASETS.TEST", "('shapes_tiny',)", *options]
    )
    return cfg
