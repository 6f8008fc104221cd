"""What must hold on any machine: a device against float64 on the CPU."""

import contextlib
import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config import find_config_file, get_cfg, merge_config_file, merge_options
from ..engine.step import Step
from ..engine.trainer import step_options
from ..modeling.isonet import ISONet
from ..modeling.layers import SReLU
from ..regularizer.loss import (
    add_orthogonal_loss,
    build_model,
    orthogonality_penalty,
    penalized_convolutions,
)
from ..regularizer.penalty import full_precision
from ..solver.optimizer import build_optimizer
from .measure import random_batch
from .records import map_error, official_image, official_network, official_records

# A Mask R-CNN that takes a moment. Every proposal is sampled: devices draw differently.
SMALL = [
    "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.ROI_HEADS.NUM_CLASSES", "4",
    "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3']", "MODEL.FPN.IN_FEATURES", "['res2', 'res3']",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[14, 20], [28, 40], [56, 72]]",
    "MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4']", "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']",
    "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "INPUT.MIN_SIZE_TRAIN", "(96,)",
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.0005", "SOLVER.REFERENCE_WORLD_SIZE", "0",
    "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0", "SEED", "1",
]  # fmt: skip
SMALL_CONFIG = "mask_rcnn_risonet18_fpn.yaml"


@dataclass(frozen=True)
class Check:
    """One line of the report; ``passed`` None where this machine cannot tell."""

    name: str
    passed: bool | None
    result: str
    expected: str


def at_most(name: str, error: float, limit: float) -> Check:
    """A check of an error against its tolerance; NaN fails."""
    return Check(name, error <= limit, f"{error:.2g}", f"at most {limit:g}")


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Float32 without TF32, in convolutions too."""
    cudnn = torch.backends.cudnn
    place, name, value = cudnn, "allow_tf32", False  # type: tuple[Any, str, Any]
    if hasattr(cudnn, "conv"):  # PyTorch 2.9 and later
        place, name, value = cudnn.conv, "fp32_precision", "ieee"
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        with full_precision():
            yield
    finally:
        setattr(place, name, before)


def half_types(device: torch.device) -> list[str]:
    """The types of mixed precision that a device computes in."""
    return ["float16", "bfloat16"] if device.type == "cuda" else ["bfloat16"]


def relative(values: Tensor, expected: Tensor) -> float:
    """Norm of a difference, relative to the expected values'."""
    expected = expected.double().cpu()
    return ((values.double().cpu() - expected).norm() / expected.norm()).item()


def authors_network(device: torch.device) -> Iterator[Check]:
    """The recorded maps and logits of the authors' network."""
    half = {"float16": 0.02, "bfloat16": 0.1}
    for name, record in official_records().items():
        net, image = official_network(name), official_image()
        with torch.no_grad(), exact_products():
            yield at_most(f"{name}, float64, CPU", map_error(record, net(image)), 1e-9)
            net, image = net.float().to(device), image.float().to(device)
            yield at_most(f"{name}, float32", map_error(record, net(image)), 1e-4)
            for dtype in half_types(device):
                with torch.autocast(device.type, dtype=getattr(torch, dtype)):
                    yield at_most(f"{name}, {dtype}", map_error(record, net(image)), half[dtype])


def authors_penalty(device: torch.device) -> Iterator[Check]:
    """The recorded penalties and gradients; TF32 and autocast do not touch them."""
    for name, record in official_records().items():
        net = official_network(name)
        for words, where, limit in (
            (f"penalty of {name}, float64, CPU", torch.device("cpu"), 1e-9),
            (f"penalty of {name}, float32", device, 1e-5),
        ):
            net = net.to(where).to(torch.float64 if limit < 1e-8 else torch.float32)
            net.zero_grad()
            torch.set_float32_matmul_precision("high")
            try:
                with torch.autocast(where.type, dtype=torch.bfloat16):
                    total = orthogonality_penalty(net)
            finally:
                torch.set_float32_matmul_precision("highest")
            total.backward()
            errors = [abs(total.item() / record["ortho"]["total"] - 1)]
            gradients = [c.weight.grad for c in penalized_convolutions(net).values()]
            norms = torch.stack([g.double().norm() for g in gradients if g is not None]).cpu()
            errors += [
                (norms / g["l2"] - 1).abs().min().item() for g in record["ortho"]["grad"].values()
            ]
            yield at_most(words, max(errors), limit)


def srelu(device: torch.device) -> Iterator[Check]:
    """SReLU's gradients beside the formula's."""
    generator = torch.Generator().manual_seed(0)
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for dtype, words in itertools.product(["float32", *half_types(device)], formats):
        layer = SReLU(70).to(device)
        x, grad = (
            torch.randn(2, 70, 60, 100, generator=generator).to(getattr(torch, dtype))
            for _ in range(2)
        )
        leaf = x.to(device).contiguous(memory_format=formats[words]).requires_grad_()
        layer(leaf).backward(grad.to(device))
        to_bias = x <= -1
        assert leaf.grad is not None and layer.srelu_bias.grad is not None
        yield Check(
            f"SReLU, {dtype}, {words}: gradient of x",
            torch.equal(leaf.grad.cpu(), grad.masked_fill(to_bias, 0)),
            "compared",
            "the formula's, bit by bit",
        )
        bias = (grad.double() * to_bias).sum((0, 2, 3))
        error = relative(layer.srelu_bias.grad.flatten(), bias)
        yield at_most(f"SReLU, {dtype}, {words}: gradient of b", error, 1e-5)


def small_cfg(device: torch.device, *options: str) -> CfgNode:
    """The config of a detector that takes a moment."""
    cfg = get_cfg()
    merge_config_file(cfg, find_config_file(SMALL_CONFIG))
    merge_options(cfg, [*SMALL, "MODEL.DEVICE", str(device), *options])
    return cfg


def small_detector(cfg: CfgNode) -> nn.Module:
    """A detector away from Delta, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            if "fpn" in name or parameter.dim() != 4:
                noise *= 0.01
            elif "srelu" not in name:
                noise *= parameter[0].numel() ** -0.5
            parameter.add_(noise if "srelu" not in name else 0)
            if "res_multiplier" in name:
                parameter.fill_(0.5)
    return model


def three_steps(device: torch.device, *options: str) -> Tensor:
    """Gradient norms and losses of three training steps of a detector, (3, 1 + losses)."""
    cfg = small_cfg(device, *options)
    batch = random_batch(2, 96, 128, classes=4)
    model = small_detector(cfg)
    step = Step(model, itertools.repeat(batch), build_optimizer(cfg, model), step_options(cfg, 0))
    with EventStorage() as storage:
        for step.iter in range(3):
            storage.iter = step.iter
            step.run_step()
        step.write_losses()
        histories = {
            name: [value for value, _ in history.values()]
            for name, history in storage.histories().items()
            if name == "grad_norm" or "loss" in name
        }
    return torch.tensor([histories[name] for name in sorted(histories)]).t()


def training_step(device: torch.device) -> Iterator[Check]:
    """Three steps of a Mask R-CNN, whole, and the keys that change how it runs."""
    with exact_products():
        reference = three_steps(torch.device("cpu"))
        steps = three_steps(device)
    if device.type == "cpu":
        same = torch.equal(steps, reference)
        yield Check("three training steps, twice", same, "compared", "the same, bit by bit")
    else:
        yield at_most("three training steps against the CPU", relative(steps, reference), 1e-3)
    stages = ("MODEL.ISONET.CHECKPOINT_STAGES", "('res2', 'res3')")
    variants: list[tuple[str, ...]] = [stages, ("MODEL.CHANNELS_LAST", "True")]
    variants += [("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", t) for t in half_types(device)]
    if device.type == "cuda":
        variants.append(("MODEL.COMPILE", "True"))
    for words in variants:
        with exact_products():
            steps, expected = three_steps(device, *words), reference
        name, limit = f"three training steps, {' '.join(words)}", 1e-3
        if "AMP" in words[0]:
            # A float16 loss scaler begins with steps whose gradients overflow.
            steps, expected = steps[:1, 1:], expected[:1, 1:]
            name, limit = f"losses of the first step, {words[-1]}", 0.1
        yield at_most(name, relative(steps, expected), limit)
    if device.type != "cuda":
        reason = "minutes of C++ on a CPU"
        yield Check("three training steps, MODEL.COMPILE True", None, "not run", reason)


class DeviceReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations, and among them those for which the host needs a value from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = str(func)
        if name.startswith(("aten.index.", "aten.index_put")):  # a mask needs its count
            waits = any(t is not None and t.dtype == torch.bool for t in args[1])
        else:
            waits = bool(
                {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
            )
        if waits:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


class BackboneOnly(nn.Module):
    """A backbone whose loss is the mean square of its maps: a step without Detectron2's heads."""

    def __init__(self, depth: int = 18) -> None:
        super().__init__()
        self.backbone = ISONet(depth, out_features=["res2", "res3"])
        for name, parameter in self.named_parameters():
            if "res_multiplier" in name:
                nn.init.constant_(parameter, 0.5)
        add_orthogonal_loss(self, 1e-2)

    def forward(self, images: list[dict[str, Any]]) -> dict[str, Tensor]:
        x = torch.stack([d["image"] for d in images]) / 255
        maps = self.backbone(x.to(next(self.parameters()).device))
        return {"loss_maps": torch.stack([m.square().mean() for m in maps.values()]).sum()}


def backbone_step(device: torch.device, batch: list[dict[str, Any]]) -> Step:
    """A step of backbone, penalty and update."""
    torch.manual_seed(0)
    model = BackboneOnly().to(device)
    cfg = small_cfg(device)
    step = Step(model, itertools.repeat(batch), build_optimizer(cfg, model), step_options(cfg, 0))
    step.iter = 0
    return step


def no_synchronization(device: torch.device) -> Iterator[Check]:
    """The host waits for no value in backbone, penalty and update."""
    batch = random_batch(2, 96, 128)
    for d in batch:
        d["image"] = d["image"].to(device)
    step = backbone_step(device, batch)
    for _ in range(2):
        step.run_step()  # tables, kernels and buffers of the first step
    name = "reads of device values in backbone, penalty and update"
    if device.type == "cuda":
        segments = torch.cuda.memory_stats(device)["segment.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.run_step()
        except RuntimeError as error:
            yield Check(name, False, str(error).splitlines()[0], "none")
        else:
            yield Check(name, True, "none", "none")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        more = torch.cuda.memory_stats(device)["segment.all.allocated"] - segments
        yield at_most("segments of memory that a further step allocates", more, 0)
        return
    with DeviceReads() as counted:
        step.run_step()
    result = ", ".join(counted.reads) or f"none in {counted.operations} operations"
    yield Check(name, not counted.reads, result, "none")


def penalty_gradient(device: torch.device) -> Iterator[Check]:
    """The penalty's gradient on the device beside float64."""
    net = ISONet(50)
    generator = torch.Generator().manual_seed(0)
    for conv in penalized_convolutions(net).values():
        noise = torch.randn(conv.weight.shape, generator=generator)
        conv.weight.data += noise * conv.weight[0].numel() ** -0.5
    exact = copy.deepcopy(net).double()
    net = net.to(device)
    for part in (net, exact):
        orthogonality_penalty(part).backward()
    gradients, expected = (
        torch.cat([c.weight.grad.double().cpu().flatten() for c in convs.values()])  # type: ignore[union-attr]
        for convs in (penalized_convolutions(net), penalized_convolutions(exact))
    )
    yield at_most("penalty of R-ISONet-50: gradient, float32", relative(gradients, expected), 1e-5)
