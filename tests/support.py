"""What tests of several rooms share."""

import contextlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch
from detectron2.engine import HookBase
from records import official_weight
from torch import distributed

REPOSITORY = Path(__file__).resolve().parents[1]
# Real photos, where they are; the tests go further with them and pass without.
COCO_MINI = REPOSITORY.parent / "shared" / "data" / "coco_mini"


def forget_loggers():
    """A log handler must not outlive what captures the output that it writes to, nor keep the
    messages of later tests from pytest."""
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    for name in ("isonet_det", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


_LETTERS = {"1": "a", "2": "b", "3": "c"}  # of a block's convolutions in the authors' names


def authors_state(net: torch.nn.Module, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """Random weights for ``net`` under the authors' names, as their files hold them."""
    state = {}
    for name, tensor in net.state_dict().items():
        name = re.sub(r"^linear\.", "head.fc.", name)
        name = re.sub(r"^res(\d)\.(\d+)\.", lambda m: f"s{int(m[1]) - 1}.b{int(m[2]) + 1}.", name)
        name = name.replace(".shortcut.", ".proj.").replace(
            "res_multiplier", "f.shared_scalar.scale"
        )
        name = re.sub(r"\.conv(\d)\.", lambda m: f".f.{_LETTERS[m[1]]}.", name)
        name = re.sub(r"\.activation(\d)\.", lambda m: f".f.{_LETTERS[m[1]]}_relu.", name)
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


def small_cfg(*options):
    """The quickstart's config at the size of a test."""
    from isonet_det import model_zoo
    from isonet_det.config import merge_options

    cfg = model_zoo.get_config("quickstart.yaml")
    merge_options(
        cfg, [*TINY, "MODEL.DEVICE", "cpu", "DATASETS.TEST", "('shapes_tiny',)", *options]
    )
    return cfg


ITERATIONS = 7


class At(HookBase):
    """Does something before an iteration."""

    def __init__(self, iteration, action):
        self.iteration, self.action = iteration, action

    def before_step(self):
        if self.trainer.iter == self.iteration:
            self.action(self.trainer)


class PowerCut(BaseException):
    """Ends a run without any of its own code."""


def cut(trainer):
    raise PowerCut


def run_cfg(folder, *options):
    return small_cfg(
        "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.STEPS", "(4,)",
        "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "3", "SEED", "4", *options,
    )  # fmt: skip


@contextlib.contextmanager
def without_pictures():
    """Runs draw nothing: pictures take longer than all the rest of a small one."""
    with contextlib.ExitStack() as stack:
        for module in ("loop", "trainer"):
            stack.enter_context(mock.patch(f"isonet_det.engine.{module}.try_to_draw"))
        yield


def train(cfg, resume=False, *hooks, pictures=False):
    from isonet_det.engine.trainer import Trainer

    trainer = Trainer(cfg)
    trainer.register_hooks(list(hooks))
    trainer.resume_or_load(resume)
    with contextlib.nullcontext() if pictures else without_pictures():
        trainer.train()


def outcome(folder):
    """What must not depend on interruptions."""
    final = torch.load(folder / "model_final.pth")
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    clocks = ("time", "data_time", "eta_seconds", "hours", "max_mem_mb")
    rows = [{k: v for k, v in row.items() if k not in clocks} for row in rows]
    return final["model"], final["trainer"]["_trainer"]["optimizer"], rows


def assert_identical(found, expected):
    for name, tensor in expected[0].items():
        assert torch.equal(found[0][name], tensor), name
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
    assert json.dumps(found[2]) == json.dumps(expected[2])  # NaN included


def take(loader, count, skip=0):
    from isonet_det.data.stream import end_workers

    loader.batch_sampler.skip = skip
    iterator = iter(loader)
    taken = list(itertools.islice(iterator, count))
    end_workers(iterator)
    return taken


def _in_process(rank, work, folder, arguments, kind):
    from detectron2.utils import comm

    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
    )
    comm.create_local_process_group(2)
    work(rank, folder, *arguments)
    distributed.destroy_process_group()


def in_two_processes(work, folder, *arguments, kind="cpu"):
    """Run ``work(rank, folder, *arguments)`` in two processes that are a process group."""
    # Forked from a process that has imported everything once.
    multiprocessing.set_forkserver_preload(["isonet_det.engine.trainer"])
    torch.multiprocessing.start_processes(
        _in_process, (work, str(folder), arguments, kind), nprocs=2, start_method="forkserver"
    )


def start_training(folder, few_shapes, *options, iterations=60):
    """tools/train_net.py as a process, which evaluates at the end and leaves FOLDER.log."""
    command = [
        sys.executable, "-W", "ignore", REPOSITORY / "tools" / "train_net.py", "--config-file",
        "quickstart.yaml", "--resume", "--dataset", few_shapes, *options, "DATASETS.TRAIN",
        "('few',)", "DATASETS.TEST", "('few',)", "OUTPUT_DIR", folder, *TINY, *PENALTY,
        "SOLVER.MAX_ITER", str(iterations), "SOLVER.CHECKPOINT_PERIOD", "3",
        "TEST.EVAL_PERIOD", "20", "SEED", "2", "DATALOADER.NUM_WORKERS", "2",
    ]  # fmt: skip
    log = open(f"{folder}.log", "a")
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=log,
        stderr=log,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # a process group of its own, loader workers included
    )


class Trap:
    """What a pickle could do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# Config files with one thing wrong, and the words that say it.
BAD_YAML = {
    "empty.yaml": ("", "no yaml mapping"),
    "list.yaml": ("- a\n- b\n", "no yaml mapping"),
    "broken.yaml": ("MODEL: {RESNETS: [\n", "no plain yaml"),
    "tag.yaml": ("X: !!python/object/apply:os.mkdir ['ran']\n", "no plain yaml"),
    "cycle.yaml": ("_BASE_: cycle.yaml\n", "lead back to it"),
    "nobase.yaml": ("_BASE_: nowhere.yaml\n", "nowhere.yaml not found"),
    "unknown.yaml": ("MODEL: {ISONET: {RESIDUALS: true}}\n", "did you mean MODEL.ISONET.RESIDUAL?"),
    "section_name.yaml": ("MODEL: {RESNET: {DEPTH: 50}}\n", "did you mean MODEL.RESNETS.DEPTH?"),
    "type.yaml": (
        "MODEL: {RESNETS: {DEPTH: fifty}}\n",
        "MODEL.RESNETS.DEPTH: expected int, got 'fifty'",
    ),
    "section.yaml": ("MODEL: 3\n", "MODEL is a section"),
    "number.yaml": ("5: {6: 7}\n", "there is no config key 5.6"),
    "binary.yaml": ("\x00\x01", "no plain yaml"),
}


def spoil(content, how):
    """A COCO json with one thing wrong."""
    images, annotations = content["images"], content["annotations"]
    if how == "unknown category":
        annotations[2]["category_id"] = 77
    elif how == "unknown image":
        annotations[2]["image_id"] = 77
    elif how == "same image id":
        images[1]["id"] = images[0]["id"]
    elif how == "same annotation id":
        annotations[1]["id"] = annotations[0]["id"]
    elif how == "short box":
        annotations[0]["bbox"] = [1, 2]
    elif how == "nan box":
        annotations[0]["bbox"] = [1, 2, float("nan"), 4]
    elif how == "mask size":
        annotations[0]["segmentation"] = {"size": [3, 4], "counts": [12]}
    elif how == "mask word":
        annotations[0]["segmentation"] = "none"
    elif how == "height word":
        images[0]["height"] = "tall"
    elif how == "other size":
        images[0]["height"] += 1
    elif how == "no file name":
        del images[2]["file_name"]
    elif how == "no annotations":
        del content["annotations"]
    elif how == "no categories":
        content["categories"] = []
    elif how == "id list":
        annotations[0]["id"] = [1]
    elif how == "no images":
        del content["images"]
    elif how == "no box":
        del annotations[0]["bbox"]
    elif how == "list":
        return [content]
    elif how == "empty":
        content["images"] = []
    elif how == "missing photo":
        images[0]["file_name"] = "gone.png"
    return content


def write_run(table, root, name, options=(), *, results, seed=1, processes=8, done=None):
    """The folder of a run of a table's row, as training leaves it after its last metrics
    ``results``, or cut after ``done`` iterations."""
    from isonet_det.config import merge_options
    from isonet_det.solver.schedule import scale_to_processes

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
