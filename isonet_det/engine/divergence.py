"""Where a value first stopped being finite."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ..data.stream import seed_everything


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


@contextlib.contextmanager
def guard_nonfinite(model: nn.Module) -> Iterator[None]:
    """Let a step survive the FloatingPointError of Detectron2's RPN, with a loss that is NaN for
    every parameter: all processes decide alike, where an exception would leave others waiting."""
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
    try:
        yield
    finally:
        model.forward = forward  # type: ignore[method-assign]


def first_nonfinite(
    model: nn.Module,
    batch: list[dict],
    seed: int,
    autocast: Callable[[], contextlib.AbstractContextManager],
) -> str:
    """Repeat a step and name its first value that is not finite; "" for none."""
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name}, before the step"
    places = {module: name for name, module in model.named_modules()}
    outputs: list[str] = []

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        if not outputs and not list(module.children()) and not _finite(output):
            outputs.append(f"the output of {places.get(module)} ({type(module).__name__})")

    seed_everything(seed)
    # Compiled modules call no hooks; Detectron2's heads log into a storage.
    as_it_is = torch.compiler.set_stance("force_eager")
    with register_module_forward_hook(watch), as_it_is, EventStorage(), autocast():
        try:
            losses = model(batch)
        except FloatingPointError:
            losses = {}
    if outputs:
        return outputs[0]
    if isinstance(losses, Tensor):
        losses = {"total_loss": losses}
    for name, loss in losses.items():
        if not _finite(loss):
            return f"the loss {name}"
    model.zero_grad()
    sum(losses.values()).backward()
    # Backward walks from the end: its first non-finite value is the last one here.
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    names = [n for n, gradient in gradients.items() if not _finite(gradient)]
    if names:
        return f"the gradient of {names[-1]}"
    if not _finite(torch.nn.utils.get_total_norm(list(gradients.values()))):
        largest = max(gradients, key=lambda n: gradients[n].abs().max().item())
        value = gradients[largest].abs().max().item()
        return f"the norm of all gradients (the largest value is {value:.3g}, of {largest})"
    return ""
