"""One training iteration: accumulation, mixed precision, values that are not finite."""

import contextlib
import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..data.stream import seed_everything, step_seed
from ..errors import ISONetError
from ..modeling.watch import stop_awaiting

logger = logging.getLogger(__name__)

MOST_NAMED = 16  # images of an iteration that an error names


def flush_subnormals() -> None:
    """Take subnormal numbers for 0, in this thread and in those that it starts from now on. From
    Delta most weights' first products are subnormal, which CPUs compute twenty times slower."""
    torch.set_flush_denormal(True)


class NonFiniteError(ISONetError, FloatingPointError):
    """A loss or gradient is not finite; ``batches`` are the iteration's keys of the stream."""

    def __init__(self, message: str, iteration: int, batches: list[list[tuple[int, int]]]) -> None:
        super().__init__(message)
        self.iteration, self.batches = iteration, batches


@dataclass
class _Done:
    """An iteration whose numbers are still on the device."""

    iteration: int
    data_time: float  # seconds
    images: list[Any]  # their ids, in this process
    batches: list[list[tuple[int, int]]]
    names: list[str]
    numbers: Tensor  # the losses, then the gradient norm


class Step(SimpleTrainer):
    """Detectron2's iteration without a synchronization: losses stay on the device until
    :meth:`write_losses`. An update from a non-finite gradient is never applied: the fused optimizer
    reads that from a flag on the device, which stays up where the run is to stop. (With a float16
    loss scaler such gradients are routine; there a non-finite loss counts.)"""

    def __init__(
        self, model, data_loader, optimizer: torch.optim.Optimizer, cfg: CfgNode, seed: int
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        flush_subnormals()
        stop_awaiting(model, "trainer")  # this is it
        self.solver, self.seed = cfg.SOLVER, seed
        self.unreadable_limit = cfg.DATALOADER.UNREADABLE_LIMIT
        amp = cfg.SOLVER.AMP
        for key, value, choices in (
            ("SOLVER.AMP.DTYPE", amp.DTYPE, ("", "float16", "bfloat16")),
            ("SOLVER.ON_NONFINITE", cfg.SOLVER.ON_NONFINITE, ("stop", "skip")),
        ):
            if value not in choices:
                raise ISONetError(f"{key}: expected one of {choices}, got {value!r}")
        device = next(model.parameters()).device
        default = "float16" if device.type == "cuda" else "bfloat16"
        self.amp = (amp.DTYPE or default) if amp.ENABLED else ""
        dtype = getattr(torch, self.amp) if self.amp else None
        self.autocast = lambda: torch.autocast(device.type, dtype=dtype, enabled=amp.ENABLED)
        # float16's range is too small for gradients.
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=self.amp == "float16")
        self.skipped_in_a_row = self.unreadable = 0
        self._halted = torch.zeros((), device=device)
        self._done: list[_Done] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if group.get("momentum"):
                    # A skipped first update would leave the fused kernel's buffer unset.
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def run_step(self) -> None:
        steps = self.solver.ACCUMULATE_STEPS
        done = _Done(self.iter, 0.0, [], [], [], torch.empty(0))
        totals: dict[str, list[Tensor]] = defaultdict(list)
        self.optimizer.zero_grad()
        for step in range(steps):
            start = time.perf_counter()
            try:
                data = next(self._data_loader_iter)
            except (ConnectionError, EOFError) as error:
                raise RuntimeError("DataLoader worker ended without an error message") from error
            done.data_time += time.perf_counter() - start
            done.images += [d.get("image_id", d.get("file_name")) for d in data]
            done.batches.append([d["stream"] for d in data if "stream" in d])
            self._count_unreadable(data)
            seed_everything(step_seed(self.seed, comm.get_rank(), self.iter, step))
            with contextlib.ExitStack() as stack:
                if step + 1 < steps and isinstance(self.model, DistributedDataParallel):
                    stack.enter_context(self.model.no_sync())  # gradients meet at the last one
                with self.autocast():
                    losses = self.model(data)
                if isinstance(losses, Tensor):
                    losses = {"total_loss": losses}
                self.grad_scaler.scale(sum(losses.values()) / steps).backward()
            for name, loss in losses.items():
                totals[name].append(loss.detach().double())
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self._update(norm)
        done.names = [*totals, "grad_norm"]
        means = [torch.stack(values).mean() for values in totals.values()]
        done.numbers = torch.stack([*means, norm.double()])
        self._done.append(done)

    def _update(self, norm: Tensor) -> None:
        if self.grad_scaler.is_enabled():
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
            return
        bad = (~norm.isfinite()).float()
        if self.solver.ON_NONFINITE == "stop":
            bad = self._halted = torch.maximum(self._halted, bad)
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.grad_scale, self.optimizer.found_inf = None, bad
            self.optimizer.step()
        elif not bad.item():  # another optimizer than our fused one cannot be told on the device
            self.optimizer.step()

    def _count_unreadable(self, data: list[dict]) -> None:
        for message in [m for d in data for m in d.get("unreadable", ())]:
            self.unreadable += 1
            text = "Iteration %d: %s; the next photo stands in (%d so far)"
            logger.warning(text, self.iter, message, self.unreadable)
            if self.unreadable > self.unreadable_limit:
                raise ISONetError(f"{message} (DATALOADER.UNREADABLE_LIMIT)")

    def write_losses(self) -> None:
        """Log what was not logged yet, averaged over the processes, which all call this."""
        pending, self._done = self._done, []
        if not pending:
            return
        fetched = torch.cat([done.numbers for done in pending]).cpu()
        parts = fetched.split([len(done.numbers) for done in pending])
        mine = [
            (dict(zip(done.names, part.tolist(), strict=True)), done.data_time, done.images)
            for done, part in zip(pending, parts, strict=True)
        ]
        for done, row in zip(pending, zip(*comm.all_gather(mine), strict=True), strict=True):
            names = {name: None for values, _, _ in row for name in values}  # in order
            values = {n: float(np.mean([v[n] for v, _, _ in row if n in v])) for n in names}
            norm = values.pop("grad_norm")
            checked = [*values.values(), 0.0 if self.grad_scaler.is_enabled() else norm]
            shown = {**values, "grad_norm": norm}
            if np.isfinite(checked).all():
                self.skipped_in_a_row = 0
            else:
                self._on_nonfinite(done, shown, [i for _, _, images in row for i in images])
            if comm.is_main_process():
                shown["total_loss"] = sum(values.values())
                shown["data_time"] = max(seconds for _, seconds, _ in row)
                if self.unreadable:
                    shown["unreadable_photos"] = self.unreadable
                for name, value in shown.items():
                    get_event_storage().put_scalar(name, value, cur_iter=done.iteration)

    def _on_nonfinite(self, done: _Done, values: dict[str, float], images: list) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        where = f"iteration {done.iteration}: not finite: {shown}; images {images[:MOST_NAMED]}"
        self.skipped_in_a_row += 1
        skip = self.solver.ON_NONFINITE == "skip"
        if skip and self.skipped_in_a_row <= self.solver.NONFINITE_LIMIT:
            logger.warning("%s; this update is skipped", where)
            return
        if skip:
            where += f"; {self.skipped_in_a_row} in a row (SOLVER.NONFINITE_LIMIT)"
        raise NonFiniteError(where, done.iteration, done.batches)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
            "unreadable": self.unreadable,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a checkpoint's state; what a config says of a group is this run's."""
        saved = state_dict["optimizer"]
        groups = [
            {**before, **{k: v for k, v in now.items() if k not in ("params", "lr")}}
            for before, now in zip(saved["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        super().load_state_dict({**state_dict, "optimizer": {**saved, "param_groups": groups}})
        for parameter, state in self.optimizer.state.items():
            if "momentum_buffer" in state:  # in the parameter's memory format, as fused kernels ask
                buffer = state["momentum_buffer"]
                state["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.skipped_in_a_row = state_dict.get("skipped_in_a_row", 0)
        self.unreadable = state_dict.get("unreadable", 0)
