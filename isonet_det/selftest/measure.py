"""Measurements, two things interleaved in one process: medians and ratios."""

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from statistics import median
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ..engine.step import Step
from ..engine.trainer import step_options
from ..modeling.isonet import ISONet
from ..modeling.layers import SReLU, stop_awaiting
from ..regularizer.loss import build_model, orthogonality_penalty, penalized_convolutions
from ..regularizer.penalty import full_precision, multiply_adds, spatial_orthogonality
from ..solver.optimizer import build_optimizer


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's queue; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    calls: Sequence[Callable[[], Any]], device: torch.device, repeats: int, warmup: int = 1
) -> list[float]:
    """Median seconds of each call, taken in turn so that all see the same machine."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(warmup + repeats):
        for call, seconds in zip(calls, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn >= warmup:
                seconds.append(time.perf_counter() - start)
    return [median(seconds) for seconds in times]


def on_gpu(call: Callable[[], Any], device: torch.device) -> tuple[int, float] | None:
    """Kernels that a call starts on a GPU, and the seconds that these take together; None on a
    CPU. Less than the call's own seconds: the GPU waits for the host."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        synchronize(device)
    kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return len(kernels), sum(event.self_device_time_total for event in kernels) / 1e6


def gemm_peak(device: torch.device, size: int = 1024) -> float:
    """FLOP/s of a float32 matrix product, TF32 off."""
    a, b = torch.randn(2, size, size, device=device)
    with full_precision():
        (seconds,) = interleaved([lambda: a @ b], device, 9, 2)
    return 2 * size**3 / seconds


def benchmark_penalty(depth: int, device: torch.device, repeats: int = 7) -> dict[str, Any]:
    """The penalty of R-ISONet with its gradient, beside the formula under autograd.

    Returns:
        seconds of both, their ratio, multiply-adds and FLOP/s, and :func:`on_gpu` of both.
    """
    net = ISONet(depth).to(device)
    for conv in penalized_convolutions(net).values():
        nn.init.kaiming_normal_(conv.weight)
    kernels = [(c.weight, (c.stride[0], c.stride[1])) for c in penalized_convolutions(net).values()]

    def ours() -> None:
        net.zero_grad()
        orthogonality_penalty(net).backward()

    def formula() -> None:
        net.zero_grad()
        torch.stack([spatial_orthogonality(w, s) for w, s in kernels]).sum().backward()

    fast, slow = interleaved([ours, formula], device, repeats, 3)
    work = sum(multiply_adds(w, s) for w, s in kernels)
    return {
        "ours": fast,
        "formula": slow,
        "ratio": slow / fast,
        "multiply_adds": work,
        "flops": 2 * work / fast,
        "on_gpu": on_gpu(ours, device),
        "formula_on_gpu": on_gpu(formula, device),
    }


class _FreshMap(torch.autograd.Function):
    """What a convolution hands to its activation: a map of its own, with a gradient. Free of
    cost in both directions, so that the activation alone is measured."""

    @staticmethod
    def forward(ctx, anchor: Tensor, box: list[Tensor]) -> Tensor:
        return box[0].detach()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return None, None


def kept_bytes(forward: Callable[[], Any], beside: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once.

    Args:
        forward: its result has the graph.
        beside: tensors whose storages do not count, such as parameters.
    """
    ignored = {t.untyped_storage()._cdata for t in beside}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in ignored:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        graph = forward()  # held, so that no storage comes after another in the same place
    del graph
    return sum(kept.values())


def backbone_bytes(cfg: CfgNode, images: int, height: int, width: int) -> int:
    """Bytes that a config's backbone, FPN included, keeps for the backward pass of a batch, beside
    its parameters. Counted on PyTorch's meta device: no value is computed.

    Args:
        cfg: of a detector.
        images, height, width: of the batch, in pixels.
    """
    with torch.device("meta"):
        net = build_backbone(cfg, ShapeSpec(channels=3)).train()
        batch = torch.empty(images, 3, height, width)
    stop_awaiting(net, "loss")
    return kept_bytes(lambda: net(batch), [*net.parameters(), *net.buffers()])


def benchmark_srelu(
    shape: Sequence[int], device: torch.device, repeats: int = 15
) -> dict[str, Any]:
    """SReLU in place, forward and backward, beside ``relu(x - b) + b`` (with the in-place ReLU of
    the authors' code).

    Returns:
        seconds of both, their ratio, bytes that each keeps beside its output, and :func:`on_gpu`
        of both.
    """
    layer = SReLU(shape[1], inplace=True).to(device)
    bias = layer.srelu_bias
    anchor = torch.zeros((), device=device, requires_grad=True)
    # SReLU applied twice is SReLU: the map may be used again.
    box = [torch.randn(*shape, device=device)]
    gradient = torch.randn(*shape, device=device)

    def ours() -> Tensor:
        return layer(_FreshMap.apply(anchor, box))

    def formula() -> Tensor:
        return torch.relu_(_FreshMap.apply(anchor, box) - bias) + bias

    def both_ways(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            bias.grad = None
            forward().backward(gradient)

        return call

    fast, slow = interleaved([both_ways(ours), both_ways(formula)], device, repeats, 3)
    return {
        "ours": fast,
        "formula": slow,
        "ratio": slow / fast,
        "kept": kept_bytes(ours, (bias, *box)),
        "formula_kept": kept_bytes(formula, (bias, *box)),
        "on_gpu": on_gpu(both_ways(ours), device),
        "formula_on_gpu": on_gpu(both_ways(formula), device),
    }


def random_batch(
    images: int, height: int, width: int, objects: int = 8, classes: int = 1
) -> list[dict[str, Any]]:
    """Noise with boxes and masks, as a training loader gives it."""
    rng = np.random.RandomState(0)
    batch = []
    for _ in range(images):
        corner = rng.uniform(0, 0.6, (objects, 2)) * [width, height]
        size = rng.uniform(0.1, 0.4, (objects, 2)) * [width, height]
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.as_tensor(np.hstack([corner, corner + size])).float())
        instances.gt_classes = torch.arange(objects) % classes
        masks = torch.zeros(objects, height, width, dtype=torch.bool)
        for mask, box in zip(masks, instances.gt_boxes.tensor.long().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = True
        instances.gt_masks = BitMasks(masks)
        image = torch.as_tensor(rng.randint(0, 256, (3, height, width)), dtype=torch.float32)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


class Subject:
    """One config's detector, ready to take a training step or to predict."""

    def __init__(self, cfg: CfgNode, batch: list[dict]) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        # Repeated steps on random weights must not diverge: the update is made, by nothing.
        cfg.SOLVER.BASE_LR = 0.0
        cfg.MODEL.WEIGHTS = ""  # not loaded, and no warning of it
        self.model = build_model(cfg)
        # Proposals are anchors, so that as many survive NMS in one detector as in another.
        generator = getattr(self.model, "proposal_generator", None)
        for parameter in getattr(generator, "rpn_head", nn.Identity()).parameters():
            nn.init.zeros_(parameter)
        self.device = next(self.model.parameters()).device
        self.batch = batch
        self.peak = 0
        optimizer = build_optimizer(cfg, self.model)
        self.step = Step(self.model, repeat(batch), optimizer, step_options(cfg, seed=0))
        self.step.iter = 0

    def train(self) -> None:
        self.model.train()
        with EventStorage():  # Detectron2's heads log into one
            self.step.run_step()

    @torch.no_grad()
    def predict(self) -> None:
        self.model.eval()
        self.model(self.batch)

    def measured(self, call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
            call()
            if self.device.type == "cuda":
                self.peak = torch.cuda.max_memory_allocated(self.device) - before

        return run


def benchmark_detectors(
    cfgs: Sequence[CfgNode],
    mode: str,
    images: int,
    height: int,
    width: int,
    repeats: int = 5,
) -> list[dict[str, float]]:
    """A training step or an inference of several configs, on the same random batch.

    Args:
        cfgs: their weights are not loaded; time does not depend on them much.
        mode: "train" (losses, backward, optimizer step) or "inference".
        images, height, width: of the batch, in pixels.
        repeats: how often each is timed.

    Returns:
        per config: seconds, images per second, and peak bytes over what model and optimizer
        hold (GPU only; 0 on a CPU).
    """
    batch = random_batch(images, height, width)
    subjects = [Subject(cfg, batch) for cfg in cfgs]
    gc.collect()
    calls = [s.measured(s.train if mode == "train" else s.predict) for s in subjects]
    seconds = interleaved(calls, subjects[0].device, repeats, 1)
    return [
        {"seconds": t, "images_per_second": images / t, "peak_bytes": s.peak}
        for t, s in zip(seconds, subjects, strict=True)
    ]
