"""Config set-up, the training loop and evaluation; what tools/train_net.py runs."""

import argparse
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_setup,
    launch,
)
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import COCOEvaluator, verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from detectron2.utils.logger import setup_logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .config import find_config_file, get_cfg, merge_config_file, merge_options
from .data import NamingDatasetMapper, check_datasets, register_from_argument
from .errors import IsonetError
from .orthogonality import add_orthogonal_loss
from .pictures import draw_curves, draw_predictions
from .solver import build_optimizer
from .weights import load_weights

LOG_PERIOD = 20  # iterations: Detectron2's writers' own period


class Step(SimpleTrainer):
    """One iteration: Detectron2's, with mixed precision on any device and without a
    synchronization per step: losses are fetched every ``LOG_PERIOD`` iterations."""

    def __init__(self, model, data_loader, optimizer, amp: bool, accumulate_steps: int) -> None:
        super().__init__(model, data_loader, optimizer)
        device = next(model.parameters()).device.type
        # float16 needs loss scaling and a GPU; CPUs have bfloat16, which needs none.
        dtype = torch.float16 if device == "cuda" else torch.bfloat16
        self._autocast = lambda: torch.autocast(device, dtype=dtype, enabled=amp)
        self.grad_scaler = torch.amp.GradScaler(device, enabled=amp and device == "cuda")
        self.accumulate_steps = accumulate_steps
        self._pending: list[tuple[int, float, list[str], Tensor]] = []

    def run_step(self) -> None:
        steps = self.accumulate_steps
        data_time = 0.0
        totals = []
        self.optimizer.zero_grad()
        for step in range(steps):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with contextlib.ExitStack() as stack:
                if step + 1 < steps and isinstance(self.model, DistributedDataParallel):
                    stack.enter_context(self.model.no_sync())  # gradients meet at the last one
                with self._autocast():
                    losses = self.model(data)
                self.grad_scaler.scale(sum(losses.values()) / steps).backward()
            totals.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._pending.append((self.iter, data_time, list(losses), torch.stack(totals).mean(dim=0)))

    def write_losses(self) -> None:
        """Log the losses since the last call, averaged over the processes.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        names = pending[0][2]
        losses = torch.stack([values for *_, values in pending]).cpu().numpy()
        times = np.array([data_time for _, data_time, _, _ in pending])
        gathered = comm.gather((losses, times))
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        mean = np.mean([losses for losses, _ in gathered], axis=0)
        slowest = np.max([times for _, times in gathered], axis=0)
        for (iteration, *_), row, data_time in zip(pending, mean, slowest, strict=True):
            if not np.isfinite(row).all():
                shown = ", ".join(f"{n} {v:g}" for n, v in zip(names, row, strict=True))
                raise FloatingPointError(f"loss became infinite or NaN at {iteration=}: {shown}")
            storage.put_scalar("data_time", float(data_time), cur_iter=iteration)
            storage.put_scalar("total_loss", float(row.sum()), cur_iter=iteration)
            for name, value in zip(names, row, strict=True):
                storage.put_scalar(name, float(value), cur_iter=iteration)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict.get("grad_scaler", {}))


class _LossWriter(HookBase):
    def after_step(self) -> None:
        if (
            self.trainer.iter + 1
        ) % LOG_PERIOD == 0 or self.trainer.iter + 1 == self.trainer.max_iter:
            self.trainer._trainer.write_losses()


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with the orthogonal loss, an ISONet's parameter groups,
    strict weight loading and COCO evaluation; on one device or several, with or without GPU.

    Args:
        cfg: from :func:`setup` or :func:`isonet_det.get_cfg`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        if cfg.MODEL.ISONET.ORTHO_COEFF > 0 and any(
            hasattr(m, "gram_stride") for m in model.modules()
        ):
            add_orthogonal_loss(
                model,
                cfg.MODEL.ISONET.ORTHO_COEFF,
                accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
            )
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        # DistributedDataParallel takes device ids for GPUs only.
        on_gpu = next(model.parameters()).device.type == "cuda"
        model = create_ddp_model(
            model, broadcast_buffers=False, **({} if on_gpu else {"device_ids": None})
        )
        self._trainer = Step(
            model, data_loader, optimizer, cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.ACCUMULATE_STEPS
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint in ``OUTPUT_DIR`` if ``resume`` and there is one, else
        load ``MODEL.WEIGHTS``, strictly.

        Raises:
            IsonetError: the weights do not fit.
        """
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
        else:
            load_weights(self.checkpointer.model, self.cfg.MODEL.WEIGHTS)

    def build_hooks(self) -> list[HookBase | None]:
        hooks = super().build_hooks()
        # Losses are gathered from all processes, and before the writers read them.
        hooks.insert(2, _LossWriter())
        return hooks

    def train(self) -> Any:
        # Not DefaultTrainer's: its check of the expected results would come before the pictures.
        TrainerBase.train(self, self.start_iter, self.max_iter)
        results = getattr(self, "_last_eval_results", None)
        if comm.is_main_process():
            draw_curves(self.cfg.OUTPUT_DIR)
            if self.cfg.DATASETS.TEST:
                draw_predictions(self.cfg, self.checkpointer.model, self.cfg.OUTPUT_DIR)
            if self.cfg.TEST.EXPECTED_RESULTS:
                verify_results(self.cfg, results or {})
        return results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_detection_train_loader(
            cfg,
            mapper=NamingDatasetMapper(cfg, True),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE_STEPS,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_detection_test_loader(
            cfg, dataset_name, mapper=NamingDatasetMapper(cfg, False)
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
        if kind != "coco":
            raise IsonetError(
                f"data set {dataset_name} asks for the evaluator {kind!r}; only COCO's is built in"
            )
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        # A cached conversion of a data set of the same name may be another set's.
        return COCOEvaluator(dataset_name, output_dir=folder, allow_cached_coco=False)


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's training arguments and ``--dataset``."""
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser()
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations.json:image_root",
        help="register a COCO-format data set of your own; repeatable",
    )
    return parser


def make_cfg(args: argparse.Namespace) -> CfgNode:
    """The full config of a command line, without side effects on disk.

    Raises:
        IsonetError: anything in it that cannot be.
    """
    for argument in args.dataset:
        register_from_argument(argument)
    cfg = get_cfg()
    if args.config_file:
        args.config_file = find_config_file(args.config_file)
        merge_config_file(cfg, args.config_file)
    merge_options(cfg, list(args.opts))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("No CUDA GPU here: MODEL.DEVICE is the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _check_devices(cfg: CfgNode, num_gpus: int) -> None:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    found = torch.cuda.device_count() if on_gpu else (os.cpu_count() or 1)
    what = "CUDA GPUs" if on_gpu else "CPU cores (and no CUDA GPU)"
    if not 1 <= num_gpus <= found:
        raise IsonetError(f"--num-gpus {num_gpus}: this machine has {found} {what}")


def check_output_dir(path: str, needed_bytes: int) -> None:
    """Check that ``path`` can be written and has room.

    Raises:
        IsonetError: it cannot, or has not.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as f:
            f.write(b"0")
    except OSError as error:
        raise IsonetError(
            f"OUTPUT_DIR {path} cannot be written: {error.strerror}; name another folder"
        ) from error
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise IsonetError(
            f"OUTPUT_DIR {path}: {free / 1e9:.2f} GB are free and one checkpoint takes "
            f"{needed_bytes / 1e9:.2f} GB; free some space or name another folder"
        )


def prepare(args: argparse.Namespace) -> CfgNode:
    """Find out what is wrong before any process, model or file is made: config, devices, data,
    weights, model, output folder.

    Raises:
        IsonetError: the first thing that is wrong.
    """
    cfg = make_cfg(args)
    _check_devices(cfg, args.num_gpus)
    training = not args.eval_only
    check_datasets(cfg, train=training)
    processes, steps = args.num_gpus * args.num_machines, cfg.SOLVER.ACCUMULATE_STEPS
    if training and (steps < 1 or cfg.SOLVER.IMS_PER_BATCH % (processes * steps)):
        raise IsonetError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide among {processes} "
            f"processes of {steps} SOLVER.ACCUMULATE_STEPS"
        )
    model = _build_on_cpu(cfg)
    resuming = args.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if not resuming:
        # Once in this process, so that a file that does not fit ends the run before it starts.
        load_weights(model, cfg.MODEL.WEIGHTS, whole=args.eval_only)
    parameters = sum(p.numel() for p in model.parameters())
    # Weights and momentum in float32.
    check_output_dir(cfg.OUTPUT_DIR, 8 * parameters if training else 0)
    return cfg


def _build_on_cpu(cfg: CfgNode) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        return build_model(cfg)
    except IsonetError:
        raise
    except (KeyError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise IsonetError(f"the config's model cannot be built: {reason}") from error


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a command line, with Detectron2's loggers, seed and ``config.yaml``."""
    cfg = make_cfg(args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="isonet_det")
    default_setup(cfg, args)
    return cfg


def run(args: argparse.Namespace) -> Any:
    """Train, or evaluate with ``--eval-only``; in every process."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS, whole=True)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            draw_predictions(cfg, model, cfg.OUTPUT_DIR)
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def exit_with_one_line(main: Callable[..., Any], *args: Any) -> Any:
    """Call ``main``; an :class:`IsonetError` becomes one line on stderr and exit status 2."""
    try:
        return main(*args)
    except IsonetError as error:
        # From a data-loader worker the message carries a traceback; the last line is ours.
        line = str(error).strip().splitlines()[-1]
        print(f"error: {line.removeprefix('isonet_det.errors.IsonetError: ')}", file=sys.stderr)
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code != 2:
            raise
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno != 28):
            raise
        print(f"error: {error.filename or 'OUTPUT_DIR'}: {error.strerror}", file=sys.stderr)
    sys.exit(2)


def _run_in_process(args: argparse.Namespace) -> None:
    exit_with_one_line(run, args)


def main(argv: list[str] | None = None) -> None:
    """The command line of tools/train_net.py."""
    args = argument_parser().parse_args(argv)
    setup_logger(name="isonet_det")

    def checked() -> None:
        prepare(args)
        launch(
            _run_in_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )

    exit_with_one_line(checked)
