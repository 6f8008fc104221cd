"""``MODEL.WEIGHTS``: from an address to a filled network or detector, strictly."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ISONetError
from ..modeling.isonet import PIXEL_MEAN, PIXEL_STD
from ..modeling.layers import stop_awaiting_weights
from .download import fetch
from .names import NOT_A_WEIGHT, Checkpoint, StateDict, parse_checkpoint, read_weights
from .network import backbone_prefix, network_of_state
from .records import get_checkpoint

logger = logging.getLogger(__name__)

_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"


def resolve_weights(address: str) -> str:
    """Local path of a ``MODEL.WEIGHTS`` address, downloaded if needed.

    Takes a path, ``isonet://NAME`` (a zoo entry), ``torchvision://resnet34``,
    ``detectron2://PATH`` and http(s) addresses.

    Raises:
        ISONetError: no such file or entry, another scheme, or a failed download.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        path = os.path.expanduser(address)
        if not os.path.isfile(path):
            raise ISONetError(f"MODEL.WEIGHTS {address}: there is no such file")
        return path
    if scheme == "isonet":
        return get_checkpoint(rest)
    if scheme == "torchvision":
        return get_checkpoint(re.sub(r"^resnet(\d+)$", r"ResNet-\1", rest))
    if scheme == "detectron2":
        return _fetch_address(_DETECTRON2 + rest)
    if scheme in ("http", "https"):
        return _fetch_address(address)
    raise ISONetError(
        f"MODEL.WEIGHTS {address}: the scheme is one of isonet, torchvision, detectron2, http, "
        f"https, not {scheme}"
    )


def _fetch_address(address: str) -> str:
    # Two addresses may end in the same file name.
    tag = hashlib.sha256(address.encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]", "_", address.rsplit("/", 1)[-1])[-80:]
    return str(fetch(address, f"{tag}-{name}"))


def _some(names: list[str]) -> str:
    return f"{len(names)}, first {names[0]}" if names else "none"


def _backbone_names(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Short names of a backbone's parameters ("res2.0.conv1.weight") to the names in a state dict.

    An FPN's layers, which may have the same prefix, are not among them; the res5 that a C4
    detector has in its head is. A ResNet of ours and of Detectron2's differ in the name of the
    stem's convolution."""
    short_names: dict[str, str] = {}
    for name in names:
        if name.endswith(NOT_A_WEIGHT):
            continue
        in_head = re.match(r".*roi_heads\.(res5\..*)", name)
        if in_head:
            short_names[in_head[1]] = name
        elif name.startswith(prefix) and re.match(r"(stem|res[2-5]|linear)\.", name[len(prefix) :]):
            short_names[re.sub(r"^stem\.conv1\.", "stem.conv.", name[len(prefix) :])] = name
    return short_names


def _plan_backbone(module: nn.Module, checkpoint: Checkpoint, where: str) -> StateDict:
    """The tensor for every name of ``module``'s backbone, checked as :func:`load_backbone` says."""
    state = module.state_dict()
    prefix = backbone_prefix(state)
    if prefix is None:
        raise ISONetError(f"{type(module).__name__} holds no ISONet or ResNet to be filled")
    if checkpoint.prefix is None:
        first = next(iter(checkpoint.state))
        raise ISONetError(f"{where} holds no ISONet or ResNet: its first name is {first}")
    expected_names = _backbone_names(state, prefix)
    stages = {short.split(".")[0] for short in expected_names}
    checkpoint_names = {
        short: name
        for short, name in _backbone_names(checkpoint.state, checkpoint.prefix).items()
        if short.split(".")[0] in stages
    }
    network, expected = checkpoint.network, network_of_state(state)
    reason = (
        f"the checkpoint is {network}, the config asks for {expected}; "
        if network != expected
        else ""
    )
    missing = [
        n for n in expected_names if n not in checkpoint_names and not n.startswith("linear.")
    ]
    unexpected = [n for n in checkpoint_names if n not in expected_names]
    if missing or unexpected:
        raise ISONetError(
            f"{where} does not fit: {reason}missing names: {_some(missing)}; unexpected names: "
            f"{_some(unexpected)}"
        )
    plan = {
        expected_names[short]: checkpoint.state[name] for short, name in checkpoint_names.items()
    }
    differ = [n for n, tensor in plan.items() if tensor.shape != state[n].shape]
    if differ:
        name = differ[0]
        raise ISONetError(
            f"{where} does not fit: {reason}{name} has shape {tuple(plan[name].shape)}, expected "
            f"{tuple(state[name].shape)} ({len(differ)} of {len(plan)} differ)"
        )
    return plan


@torch.no_grad()
def _copy(module: nn.Module, plan: StateDict) -> None:
    state = module.state_dict()
    for name, tensor in plan.items():
        state[name].copy_(tensor)
    stop_awaiting_weights(module)


def load_backbone(
    module: nn.Module, source: str | Path | Mapping[str, Any] | Checkpoint
) -> list[str]:
    """Fill the backbone in ``module`` (plain, inside an FPN or inside a detector), strictly.

    Every parameter and buffer of the backbone must be in the checkpoint with its shape, and
    nothing else of a backbone may be in it, save stages that the module does not build. A
    classifier may be absent, or extra. Nothing is changed when an error is raised.

    Args:
        module: has one ISONet or Detectron2 ResNet in it.
        source: a weight file, a state dict under anybody's names, or a parsed checkpoint.

    Returns:
        the names, in ``module``, of what was filled.

    Raises:
        ISONetError: the checkpoint does not fit; the message says how.
    """
    where = str(source) if isinstance(source, (str, Path)) else "the checkpoint"
    if isinstance(source, (str, Path)):
        source = read_weights(source)
    elif not isinstance(source, Checkpoint):
        source = parse_checkpoint(source)
    plan = _plan_backbone(module, source, where)
    _copy(module, plan)
    return list(plan)


def _aligned(checkpoint: Checkpoint, state: StateDict) -> Checkpoint:
    """The part of a checkpoint that ``state`` is of, under its names: of a detector's for a bare
    FPN, ``backbone.fpn_lateral2`` is ``fpn_lateral2``."""
    checkpoint_prefix, prefix = checkpoint.prefix, backbone_prefix(state)
    if checkpoint_prefix is None or prefix is None or not checkpoint_prefix.endswith(prefix):
        return checkpoint
    outer = checkpoint_prefix.removesuffix(prefix)
    part = {n[len(outer) :]: t for n, t in checkpoint.state.items() if n.startswith(outer)}
    return replace(checkpoint, state=part)


def _plan(module: nn.Module, checkpoint: Checkpoint, address: str) -> tuple[StateDict, list[str]]:
    """The tensor for every name of ``module`` that the checkpoint fills, and the names of what it
    has in another shape: heads for other classes."""
    state = module.state_dict()
    reshaped = {n for n, t in checkpoint.state.items() if n in state and t.shape != state[n].shape}
    fits = {n: t for n, t in checkpoint.state.items() if n in state and n not in reshaped}
    backbone, classes = checkpoint, Checkpoint(state).num_classes
    if checkpoint.num_classes != classes:
        linear = f"{checkpoint.prefix}linear."
        without = {n: t for n, t in checkpoint.state.items() if not n.startswith(linear)}
        backbone = replace(checkpoint, state=without)
        if None not in (classes, checkpoint.num_classes):
            reshaped = {"linear"}
    return {**fits, **_plan_backbone(module, backbone, address)}, sorted(reshaped)


def _check_all_filled(
    module: nn.Module, checkpoint: Checkpoint, plan: StateDict, address: str
) -> None:
    """What an evaluation needs of a detector's checkpoint."""
    state = module.state_dict()
    absent = [n for n, _ in module.named_parameters() if n not in plan]
    unexpected = [n for n in checkpoint.state if n not in state]
    network, expected_network = checkpoint.network, network_of_state(state)
    if absent or (unexpected and network != expected_network):
        name = (absent or unexpected)[0]
        actual, expected = (
            tuple(s[name].shape) if name in s else "nothing" for s in (checkpoint.state, state)
        )
        raise ISONetError(
            f"{address} does not fit the config: the checkpoint is {network}, the config asks for "
            f"{expected_network}; {len(absent)} parameters are not filled, {len(unexpected)} are "
            f"unexpected; {name}: expected {expected}, got {actual}"
        )


def _check_pixels(model: nn.Module, checkpoint: Checkpoint, address: str) -> None:
    """ImageNet weights see the pixels that they were trained on, or nothing starts."""
    # Only this package's networks, the authors' among them, call it stem.conv.
    is_isonet = f"{checkpoint.prefix}stem.conv.weight" in checkpoint.state
    if not (is_isonet or checkpoint.source == "torchvision") or not hasattr(model, "pixel_mean"):
        return
    order = getattr(model, "input_format", "RGB")
    mean: Tensor = model.pixel_mean.flatten().cpu().float()  # type: ignore[assignment, operator]
    std: Tensor = model.pixel_std.flatten().cpu().float()  # type: ignore[assignment, operator]
    fits = order == "RGB" and all(
        torch.allclose(pixels, torch.tensor(expected), atol=0.1)
        for pixels, expected in ((mean, PIXEL_MEAN), (std, PIXEL_STD))
    )
    if not fits:
        raise ISONetError(
            f"{address} was trained on RGB images of mean {list(PIXEL_MEAN)} and std "
            f"{list(PIXEL_STD)}, the config feeds {order} of mean "
            f"{[round(v, 3) for v in mean.tolist()]} and std "
            f"{[round(v, 3) for v in std.tolist()]}; set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN and "
            "MODEL.PIXEL_STD"
        )


def load_weights(model: nn.Module, address: str, whole: bool = False) -> None:
    """Fill a detector or classifier from ``MODEL.WEIGHTS``, strictly: the backbone wholly, and the
    rest from a detector's checkpoint as far as names and shapes agree; what stays at its initial
    values is logged in one line.

    Args:
        model: the detector, :class:`isonet_det.ImageClassifier` or backbone, wrapped in
            DistributedDataParallel or not.
        address: as for :func:`resolve_weights`; "" leaves the model as it is.
        whole: for evaluation: every parameter must be filled.

    Raises:
        ISONetError: the file cannot be had or does not fit. The model is unchanged then.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    state = model.state_dict()
    classes = Checkpoint(state).num_classes
    if not address:
        if whole:
            what = "detector's checkpoint" if classes is None else "classifier"
            raise ISONetError(f"MODEL.WEIGHTS is empty; evaluation needs a trained {what}")
        logger.info("MODEL.WEIGHTS is empty: the model starts from its initialization.")
        return
    checkpoint = _aligned(read_weights(resolve_weights(address)), state)
    plan, reshaped = _plan(model, checkpoint, address)
    if classes is not None:
        num_classes = checkpoint.num_classes
        if whole and num_classes != classes:
            raise ISONetError(
                f"{address} has {num_classes or 'no'} classes, the config asks "
                f"for {classes} (PRETRAIN.NUM_CLASSES)"
            )
    elif backbone_prefix(state) and (checkpoint.prefix == "" or checkpoint.num_classes is not None):
        # An ImageNet file, or a pre-training run's checkpoint, for a detector.
        if whole:
            raise ISONetError(
                f"{address} holds a backbone ({checkpoint.network}) and no detector; evaluation "
                "needs a trained detector's checkpoint"
            )
        _check_pixels(model, checkpoint, address)
    elif whole:
        _check_all_filled(model, checkpoint, plan, address)
    _label(model, checkpoint, address, whole)
    _copy(model, plan)
    _log(model, checkpoint, plan, reshaped, address)


def _label(model: nn.Module, checkpoint: Checkpoint, address: str, whole: bool) -> None:
    """A detector has the classes of its checkpoint; one that goes on to train has those of its
    data."""
    if whole:
        model.classes = checkpoint.classes  # type: ignore[assignment]
    elif checkpoint.classes and getattr(model, "classes", None):
        classes: Any = model.classes
        names, data_names = ([c["name"] for c in k] for k in (checkpoint.classes, classes))
        if names != data_names:
            logger.warning("%s was trained on %s, the data have %s", address, names, data_names)


def _log(
    model: nn.Module, checkpoint: Checkpoint, plan: StateDict, reshaped: list[str], address: str
) -> None:
    state = model.state_dict()
    filled_or_fixed = {*plan, "pixel_mean", "pixel_std"}
    initialized = sorted({n.rsplit(".", 1)[0] for n in state if n not in filled_or_fixed})
    drops_classifier = checkpoint.num_classes is not None and Checkpoint(state).num_classes is None
    logger.info(
        "%s: %s, %d tensors filled; initialized: %s%s%s",
        address,
        checkpoint.network,
        len(plan),
        ", ".join(initialized) or "nothing",
        f"; of another shape: {', '.join(reshaped)}" if reshaped else "",
        "; its classifier is not used" if drops_classifier else "",
    )


def bottom_up(backbone: nn.Module) -> nn.Module:
    """The ISONet or ResNet inside an FPN, or the backbone itself."""
    inner = getattr(backbone, "bottom_up", backbone)
    return inner if isinstance(inner, nn.Module) else backbone


def network_of_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint, filled from it: Detectron2's for a ResNet (FrozenBN), else an
    ISONet with the checkpoint's parts.

    Raises:
        ISONetError: the checkpoint has neither.
    """
    if checkpoint.network is None:
        raise ISONetError("the file holds no ISONet or ResNet")
    network = checkpoint.network.build()
    load_backbone(network, checkpoint)
    return network


def backbone_of_config(name: str) -> nn.Module:
    """The backbone of a yaml config, at initialization, on the CPU.

    Raises:
        ISONetError: the config cannot be read or built.
    """
    from detectron2.modeling import build_backbone

    from ..config import find_config_file, get_cfg, merge_config_file

    cfg = get_cfg()
    merge_config_file(cfg, find_config_file(name))
    cfg.MODEL.DEVICE = "cpu"
    return build_backbone(cfg)


def network_of(source: str) -> nn.Module:
    """The ISONet or ResNet of a weight file, a ``MODEL.WEIGHTS`` address or a config (.yaml, at
    initialization).

    Raises:
        ISONetError: it cannot be had.
    """
    if source.endswith((".yaml", ".yml")):
        return bottom_up(backbone_of_config(source))
    return network_of_checkpoint(read_weights(resolve_weights(source)))
