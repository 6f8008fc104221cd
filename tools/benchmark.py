#!/usr/bin/env python3
"""Measure the penalty, SReLU, or the training steps, inference and memory of detectors: medians,
everything that is compared interleaved in one process."""

import isonet_det  # noqa: F401  # it hides what Detectron2 warns of when it is imported

# isort: split
import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from isonet_det import ISONet, SReLU, build_model, build_optimizer, orthogonality_penalty
from isonet_det.cli import at_least_one, command, tool_parser
from isonet_det.config import (
    available_device,
    find_config_file,
    get_cfg,
    merge_config_file,
    merge_options,
)
from isonet_det.engine.step import Step
from isonet_det.errors import ISONetError
from isonet_det.modeling.watch import stop_awaiting
from isonet_det.regularizer.loss import penalized_convolutions
from isonet_det.regularizer.penalty import full_precision, multiply_adds, stride_pair

Rows = Iterator[dict[str, Any]]  # one per line of a table

MAPS = [(1, 256, 200, 320), (2, 64, 200, 320), (2, 512, 100, 160), (8, 64, 32, 32), (8, 512, 4, 4)]


def interleaved(
    calls: Sequence[Callable[[], Any]], device: torch.device, repeats: int, warmup: int = 3
) -> list[float]:
    """Median milliseconds of each call, taken in turn so that all see the same machine."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(warmup + repeats):
        for call, taken in zip(calls, times, strict=True):
            wait()
            start = time.perf_counter()
            call()
            wait()
            taken.append(1e3 * (time.perf_counter() - start))
    return [median(taken[warmup:]) for taken in times]


def on_gpu(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Kernels that a call starts, their time together (less than the call's own: the GPU waits for
    the host), and its peak of memory over what was held before; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "on the GPU, ms": sum(e.self_device_time_total for e in kernels) / 1e3,
        "kernels": len(kernels),
        "peak MB": (torch.cuda.max_memory_allocated(device) - before) / 1e6,
    }


def _beside_formula(
    ours: Callable[[], Any], formula: Callable[[], Any], device: torch.device, repeats: int
) -> dict[str, float]:
    fast, slow = interleaved([ours, formula], device, repeats)
    row = {"ms": fast, "formula ms": slow, "ratio": slow / fast}
    for name, call in (("on the GPU, ms", ours), ("formula on the GPU, ms", formula)):
        if device.type == "cuda":
            row[name] = on_gpu(call, device)["on the GPU, ms"]
    return row


def penalty(args: argparse.Namespace, device: torch.device) -> Rows:
    """The penalty with its gradient, beside the formula under autograd; and its rate, beside that
    of a product of 1024 x 1024 matrices."""
    for depth in tqdm(args.depths, disable=None):
        yield {"R-ISONet": depth, **_penalty(depth, device, args.repeats)}


def spatial_orthogonality(weight: Tensor, stride: int | tuple[int, int] = 1) -> Tensor:
    """The penalty as the formula reads."""
    if weight.shape[0] > weight.shape[1]:
        weight = weight.transpose(0, 1)  # the smaller Gram
    step = stride_pair(stride)
    height, width = weight.shape[2:]
    gram = F.conv2d(weight, weight, stride=step, padding=(height - 1, width - 1))
    identity = torch.zeros_like(gram)
    identity[:, :, (height - 1) // step[0], (width - 1) // step[1]].fill_diagonal_(1)
    return (gram - identity).square().sum() / 2


def _penalty(depth: int, device: torch.device, repeats: int) -> dict[str, float]:
    net, (a, b) = ISONet(depth).to(device), torch.randn(2, 1024, 1024, device=device)
    kernels = [(c.weight, (c.stride[0], c.stride[1])) for c in penalized_convolutions(net).values()]
    for weight, _ in kernels:
        nn.init.kaiming_normal_(weight)

    def ours() -> None:
        net.zero_grad()
        orthogonality_penalty(net).backward()

    def formula() -> None:
        net.zero_grad()
        torch.stack([spatial_orthogonality(w, s) for w, s in kernels]).sum().backward()

    row = _beside_formula(ours, formula, device, repeats)
    with full_precision():
        (ms,) = interleaved([lambda: a @ b], device, 9)
    work = sum(multiply_adds(w, s) for w, s in kernels) / 1e9
    rate, product = 2e3 * work / row["ms"], 2e3 * 1024**3 / 1e9 / ms
    return {**row, "G multiply-adds": work, "GFLOP/s": rate, "of a product's": rate / product}


class _FreshMap(torch.autograd.Function):
    """What a convolution hands to its activation: a map of its own, with a gradient. Free of
    cost in both directions, so that the activation alone is measured."""

    @staticmethod
    def forward(ctx, anchor: Tensor, box: list[Tensor]) -> Tensor:
        return box[0].detach()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return None, None


def srelu(args: argparse.Namespace, device: torch.device) -> Rows:
    """SReLU in place, forward and backward, beside ``relu(x - b) + b`` (with the in-place ReLU of
    the authors' code)."""
    for shape in tqdm(MAPS, disable=None):
        yield {"map": "x".join(map(str, shape)), **_srelu(shape, device, 10 * args.repeats)}


def _srelu(shape: Sequence[int], device: torch.device, repeats: int) -> dict[str, float]:
    layer = SReLU(shape[1], inplace=True).to(device)
    bias, anchor = layer.srelu_bias, torch.zeros((), device=device, requires_grad=True)
    # SReLU applied twice is SReLU: the map may be used again.
    box, gradient = [torch.randn(*shape, device=device)], torch.randn(*shape, device=device)

    def ours() -> Tensor:
        return layer(_FreshMap.apply(anchor, box))

    def formula() -> Tensor:
        return torch.relu_(_FreshMap.apply(anchor, box) - bias) + bias

    def both_ways(forward: Callable[[], Tensor]) -> None:
        bias.grad = None
        forward().backward(gradient)

    row = _beside_formula(partial(both_ways, ours), partial(both_ways, formula), device, repeats)
    for name, forward in (("kept MB", ours), ("formula keeps MB", formula)):
        row[name] = kept_bytes(forward, (bias, *box)) / 1e6
    return row


def kept_bytes(forward: Callable[[], Any], beside: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of ``forward``, each storage once, without
    those of the tensors ``beside``, such as parameters."""
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
    its parameters. Counted on PyTorch's meta device: no value is computed."""
    with torch.device("meta"):
        net = build_backbone(cfg, ShapeSpec(channels=3)).train()
        batch = torch.empty(images, 3, height, width)
    stop_awaiting(net, "loss", "frozen")
    return kept_bytes(lambda: net(batch), [*net.parameters(), *net.buffers()])


def _configs(args: argparse.Namespace, device: torch.device) -> dict[str, CfgNode]:
    """The baseline, and every config file with every variant of it."""
    asked = [(args.baseline, "")] if args.baseline else []
    asked += [(file, words) for file in args.config_file for words in ("", *args.variant)]
    cfgs = {}
    for file, words in asked:
        cfg = cfgs[f"{file} {words}".strip()] = get_cfg()
        merge_config_file(cfg, find_config_file(file))
        merge_options(cfg, [*args.opts, *words.split(), "MODEL.DEVICE", str(device)])
    if not cfgs:
        raise ISONetError("name the configs to be compared: --config-file A --config-file B")
    return cfgs


def memory(args: argparse.Namespace, device: torch.device) -> Rows:
    """What backbone and FPN keep for the backward pass, counted."""
    first = None
    for name, cfg in _configs(args, device).items():
        kept = backbone_bytes(cfg, args.images, args.height, args.width)
        first = first or kept
        yield {"config": name, "MB per image": kept / args.images / 1e6, "relative": kept / first}


def random_batch(
    images: int, height: int, width: int, objects: int = 8, classes: int = 1
) -> list[dict[str, Any]]:
    """Noise with boxes and masks, as a training loader gives it."""
    rng = np.random.RandomState(0)
    batch = []
    for _ in range(images):
        corner = rng.uniform(0, 0.6, (objects, 2)) * [width, height]
        size = rng.uniform(0.1, 0.4, (objects, 2)) * [width, height]
        boxes = torch.as_tensor(np.hstack([corner, corner + size])).float()
        masks = torch.zeros(objects, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        fields = {"gt_boxes": Boxes(boxes), "gt_masks": BitMasks(masks)}
        fields["gt_classes"] = torch.arange(objects) % classes
        instances = Instances((height, width), **fields)
        image = torch.as_tensor(rng.randint(0, 256, (3, height, width)), dtype=torch.float32)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def make_step(cfg: CfgNode, model: nn.Module, batch: list[dict[str, Any]]) -> Step:
    """A config's training step, on one batch for ever."""
    step = Step(model, repeat(batch), build_optimizer(cfg, model), cfg, seed=0)
    step.iter = 0
    return step


def _subject(cfg: CfgNode, batch: list[dict[str, Any]], train: bool) -> Callable[[], None]:
    """A training step, or an inference, of a config's detector with random weights."""
    # Repeated steps must not diverge: the update is made, by nothing.
    cfg.SOLVER.BASE_LR, cfg.MODEL.WEIGHTS = 0.0, ""
    model = build_model(cfg)
    stop_awaiting(model, "frozen")  # what is frozen costs the same at random
    # Proposals are anchors, so that as many survive NMS in one detector as in another.
    generator = getattr(model, "proposal_generator", None)
    for parameter in getattr(generator, "rpn_head", nn.Identity()).parameters():
        nn.init.zeros_(parameter)
    step = make_step(cfg, model, batch)
    model.train(train)

    def call() -> None:
        with EventStorage():  # Detectron2's heads log into one
            step.run_step()

    return call if train else torch.no_grad()(lambda: model(batch))


def detectors(args: argparse.Namespace, device: torch.device) -> Rows:
    """A training step or an inference of every config, on the same random batch."""
    batch = random_batch(args.images, args.height, args.width)
    cfgs = _configs(args, device)
    calls = [_subject(cfg, batch, args.what == "train") for cfg in cfgs.values()]
    times = interleaved(calls, device, args.repeats, 3 if device.type == "cuda" else 1)
    for name, call, ms in zip(cfgs, calls, times, strict=True):
        row = {"config": name, "ms": ms, "relative": ms / times[0]}
        yield {**row, "images/s": 1e3 * args.images / ms, **on_gpu(call, device)}


MEASURES = {"penalty": penalty, "srelu": srelu, "memory": memory}
MEASURES |= {"train": detectors, "inference": detectors}


def measure(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows that a command line asks for."""
    parser = tool_parser(__doc__)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--depths", type=int, nargs="+", default=[18, 34, 50, 101])
    parser.add_argument("--config-file", action="append", default=[], help="repeatable")
    parser.add_argument("--baseline", help="a config that goes before them, without variants")
    text = "'KEY VALUE ...' beside each; repeatable"
    parser.add_argument("--variant", action="append", default=[], help=text)
    for name, value in (("repeats", 7), ("images", 2), ("height", 800), ("width", 1216)):
        parser.add_argument(f"--{name}", type=at_least_one, default=value)
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs for every config")
    args = parser.parse_args(words)
    device = torch.device(available_device(args.device, "--device"))
    return list(MEASURES[args.what](args, device))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown."""

    def cell(value: Any) -> str:
        digits = ".0f" if isinstance(value, float) and abs(value) >= 1000 else ".3g"
        text = format(value, digits) if isinstance(value, float) else str(value)
        return text.replace("|", "/")

    head = list(rows[0]) if rows else []
    cells = [head, ["---"] * len(head), *([cell(row.get(name)) for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


@command
def main() -> None:
    rows = measure()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads\n{table(rows)}")


if __name__ == "__main__":
    main()
