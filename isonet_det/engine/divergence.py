"""Where a value first stopped being finite, and a dump to find it again elsewhere."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config import get_cfg
from ..data import image_folder, stream
from ..data.stream import seed_everything
from ..errors import ISONetError
from ..files import write_whole
from ..modeling.classifier import is_classifier
from ..regularizer.loss import build_model
from ..weights.reader import read_file


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _finite(value: Any) -> bool:
    return all(t.isfinite().all().item() for t in _tensors(value) if t.is_floating_point())


@contextlib.contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    def watch(name: str):
        def hook(module, inputs, output):
            if not found and not _finite(output):
                found.append(f"the output of {name} ({type(module).__name__})")

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if name and not list(module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def guard_nonfinite(model: nn.Module) -> None:
    """Let a training step survive Detectron2's own FloatingPointError (its RPN raises one when
    predictions are not finite), in place: the step has the loss ``loss_diverged``, NaN for every
    parameter. So all processes see the same gradients and decide alike, where an exception in one
    would leave the others waiting."""
    forward = model.forward

    def guarded(*args, **kwargs):
        try:
            return forward(*args, **kwargs)
        except FloatingPointError:
            if not model.training:
                raise
            parameters = [p for p in model.parameters() if p.requires_grad]
            return {"loss_diverged": sum(p.sum() for p in parameters) * float("nan")}

    model.forward = guarded  # type: ignore[method-assign]


def first_nonfinite(model: nn.Module, batch: list[dict], seed: int) -> str:
    """Run a training step's forward and backward again and name the first value that is not
    finite: a parameter, a module's output, a loss, or a parameter's gradient.

    Args:
        model: the detector, not wrapped; its gradients are lost.
        batch: the mapped images.
        seed: of the step's random draws.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name}, before the step"
    found: list[str] = []
    seed_everything(seed)
    with _watched(model, found), EventStorage():  # Detectron2's heads log into one
        try:
            losses = model(batch)
        except FloatingPointError:
            losses = {}
    if found:
        return found[0]
    for name, loss in losses.items():
        if not _finite(loss):
            return f"the loss {name}"
    model.zero_grad()
    sum(losses.values()).backward()
    # Backward walks from the end: its first non-finite value is the last one here.
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    bad = [n for n, gradient in gradients.items() if not _finite(gradient)]
    if bad:
        return f"the gradient of {bad[-1]}"
    if not _finite(torch.nn.utils.get_total_norm(list(gradients.values()))):
        largest = max(gradients, key=lambda n: gradients[n].abs().max().item())
        value = gradients[largest].abs().max().item()
        return f"the norm of all gradients (the largest value is {value:.3g}, of {largest})"
    return "nothing in a second pass"


def write_dump(
    output_dir: str,
    cfg: CfgNode,
    model: nn.Module,
    iteration: int,
    keys: list[tuple[int, int]],
    seed: int,
    message: str,
) -> str:
    """Save what ``tools/replay.py`` needs to run the failing step again.

    Returns:
        the file's path.
    """
    path = os.path.join(output_dir, f"nonfinite_{iteration:07d}.pth")
    content = {
        "model": model.state_dict(),
        "config": cfg.dump(),
        "iteration": iteration,
        "keys": keys,
        "seed": seed,
        "message": message,
    }
    with write_whole(path) as f:
        torch.save(content, f)
    return path


def replay(path: str) -> str:
    """Run the step of a dump again, on the CPU.

    Args:
        path: a file of :func:`write_dump`; its data sets must be registered.

    Returns:
        what was not finite when it was written, and what is now.

    Raises:
        ISONetError: it is no such file.
    """
    dump = read_file(path)
    missing = {"model", "config", "keys", "seed", "message"} - set(dump)
    if missing:
        raise ISONetError(
            f"{path} has no {', '.join(sorted(missing))}: it is no nonfinite_ITERATION.pth that a "
            "run left"
        )
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(dump["config"]))
    cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = "cpu", 0
    model = build_model(cfg)
    model.load_state_dict(dump["model"])
    model.train()
    classifies = is_classifier(cfg)
    dataset = (image_folder if classifies else stream).build_train_loader(cfg, 0).dataset
    batch = [dataset[tuple(key)] for key in dump["keys"]]
    return (
        f"then: {dump['message']}\nnow, on the CPU: first not finite: "
        f"{first_nonfinite(model, batch, dump['seed'])}"
    )
