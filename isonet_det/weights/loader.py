"""``MODEL.WEIGHTS``: from an address to a filled network or detector, strictly."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ISONetError
from ..modeling.family import PIXEL_MEAN, PIXEL_STD
from ..modeling.watch import refuse_frozen, stop_awaiting
from .names import Checkpoint, StateDict, parse_checkpoint, read_weights
from .zoo import PathManager

logger = logging.getLogger(__name__)


def resolve_weights(address: str) -> str:
    """Local path of an address that Detectron2's PathManager takes, fetched if needed."""
    try:
        path = PathManager.get_local_path(os.path.expanduser(address))
    except OSError as error:
        raise ISONetError(f"MODEL.WEIGHTS {address} cannot be reached: {error}") from error
    if not os.path.isfile(path):
        scheme, separator, _ = address.partition("://")
        hint = f" (no handler of PathManager knows the scheme {scheme})" if separator else ""
        what = "a folder; name a file in it" if os.path.isdir(path) else "there is no such file"
        raise ISONetError(f"MODEL.WEIGHTS {address}: {what}{hint}")
    return path


def _some(names: list[str]) -> str:
    return f"{len(names)}, first {names[0]}" if names else "none"


def _plan_backbone(module: nn.Module, checkpoint: Checkpoint, where: str) -> StateDict:
    """The tensor for every name of ``module``'s backbone, checked as :func:`load_backbone` says."""
    ours = Checkpoint(module.state_dict())
    if ours.prefix is None:
        raise ISONetError(f"{type(module).__name__} holds no ISONet or ResNet to be filled")
    if checkpoint.prefix is None:
        first = next(iter(checkpoint.state))
        raise ISONetError(f"{where} holds no ISONet or ResNet: its first name is {first}")
    # Detectron2's ResNets call the stem's convolution stem.conv1.
    expected, found = (
        {short.replace("stem.conv1.", "stem.conv."): name for short, name in c.backbone.items()}
        for c in (ours, checkpoint)
    )
    stages = {short.split(".")[0] for short in expected}
    found = {short: name for short, name in found.items() if short.split(".")[0] in stages}
    missing = [n for n in expected if n not in found and not n.startswith("linear.")]
    unexpected = [n for n in found if n not in expected]
    plan = {expected[n]: checkpoint.state[name] for n, name in found.items() if n in expected}
    reshaped = [
        f"{name} {tuple(tensor.shape)} in place of {tuple(ours.state[name].shape)}"
        for name, tensor in plan.items()
        if tensor.shape != ours.state[name].shape
    ]
    if missing or unexpected or reshaped:
        networks = f"the checkpoint is {checkpoint.network}, the config asks for {ours.network}; "
        raise ISONetError(
            f"{where} does not fit: {networks if checkpoint.network != ours.network else ''}"
            f"missing names: {_some(missing)}; unexpected names: {_some(unexpected)}; other "
            f"shapes: {_some(reshaped)}"
        )
    return plan


@torch.no_grad()
def _copy(module: nn.Module, plan: StateDict) -> None:
    state = module.state_dict()
    for name, tensor in plan.items():
        state[name].copy_(tensor)
    stop_awaiting(module, "weights", "frozen")


def load_backbone(
    module: nn.Module, source: str | Path | Mapping[str, Any] | Checkpoint
) -> list[str]:
    """Fill the backbone in ``module`` (plain, inside an FPN or inside a detector), strictly: all of
    it, and with nothing left over but stages that the module does not build, and a classifier.

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


def _aligned(checkpoint: Checkpoint, prefix: str | None) -> Checkpoint:
    """A detector's checkpoint under the names of a part of it, such as a bare FPN."""
    if checkpoint.prefix is None or prefix is None or not checkpoint.prefix.endswith(prefix):
        return checkpoint
    outer = checkpoint.prefix.removesuffix(prefix)
    part = {n[len(outer) :]: t for n, t in checkpoint.state.items() if n.startswith(outer)}
    return Checkpoint(part, checkpoint.source, checkpoint.classes)


def _check_pixels(model: nn.Module, checkpoint: Checkpoint, address: str) -> None:
    """ImageNet weights see the pixels that they were trained on, or nothing starts."""
    # Only this package's networks, the authors' among them, call it stem.conv.
    is_ours = f"{checkpoint.prefix}stem.conv.weight" in checkpoint.state
    if not (is_ours or checkpoint.source == "torchvision"):
        return
    # What the detector tells of itself, else the config that built the backbone.
    of_config = (getattr(part, "pixels", None) for part in model.modules())
    order, *statistics = next(filter(None, of_config), (None, None, None))
    order = getattr(model, "input_format", None) or order
    if hasattr(model, "pixel_mean") and hasattr(model, "pixel_std"):
        statistics = [model.pixel_mean, model.pixel_std]
    expected = f"RGB images of mean {list(PIXEL_MEAN)} and std {list(PIXEL_STD)}"
    known = statistics[0] is not None
    found = [
        [round(float(v), 3) for v in torch.as_tensor(s).flatten()] for s in statistics if known
    ]
    agree = not known or np.allclose(found, [PIXEL_MEAN, PIXEL_STD], rtol=0, atol=0.1)
    if order not in (None, "RGB") or not agree:
        of = f" of mean {found[0]} and std {found[1]}" if known else ""
        raise ISONetError(
            f"{address} was trained on {expected}, the config feeds {order or 'images'}{of}; set "
            "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD"
        )
    if order is None or not known:
        logger.warning("%s was trained on %s: see that your detector feeds them", address, expected)


def load_weights(
    model: nn.Module, address: str, *, whole: bool = False, checkpoint: Checkpoint | None = None
) -> None:
    """Fill a detector or classifier from ``MODEL.WEIGHTS``, strictly: the backbone wholly, and the
    rest as far as names and shapes agree; what stays at its initial values is logged.

    Args:
        model: the detector, :class:`isonet_det.ImageClassifier` or backbone, wrapped in
            DistributedDataParallel or not.
        address: what Detectron2's PathManager takes, ``isonet://NAME`` and
            ``torchvision://resnet34`` among it; "" leaves the model as it is.
        whole: for evaluation: every parameter must be filled.
        checkpoint: of the address, where it was read before.

    Raises:
        ISONetError: the file cannot be had or does not fit; the model is unchanged.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    ours = Checkpoint(model.state_dict())
    what = "detector's checkpoint" if ours.num_classes is None else "classifier"
    if not address:
        if whole:
            raise ISONetError(f"MODEL.WEIGHTS is empty; evaluation needs a trained {what}")
        refuse_frozen(model)
        logger.info("MODEL.WEIGHTS is empty: the model starts from its initialization.")
        return
    checkpoint = checkpoint or read_weights(resolve_weights(address))
    checkpoint = _aligned(checkpoint, ours.prefix)
    state, num_classes = checkpoint.state, checkpoint.num_classes
    fits = {n: t for n, t in state.items() if n in ours.state and t.shape == ours.state[n].shape}
    reshaped = sorted(n for n in state if n in ours.state and n not in fits)  # of other classes
    backbone = checkpoint
    if num_classes != ours.num_classes:
        if whole and ours.num_classes is not None:
            wanted = f"the config asks for {ours.num_classes} (PRETRAIN.NUM_CLASSES)"
            raise ISONetError(f"{address} has {num_classes or 'no'} classes, {wanted}")
        if None not in (num_classes, ours.num_classes):
            reshaped = ["linear"]
        linear = f"{checkpoint.prefix}linear."
        backbone = Checkpoint({n: t for n, t in state.items() if not n.startswith(linear)})
        fits = {n: t for n, t in fits.items() if n in backbone.state}  # not its scalars either
    plan = {**fits, **_plan_backbone(model, backbone, address)}
    if ours.num_classes is None and ours.prefix and (not checkpoint.prefix or num_classes):
        # An ImageNet file, or a pre-training run's checkpoint, for a detector.
        if whole:
            found = "a backbone and no detector; evaluation needs a trained one"
            raise ISONetError(f"{address} holds {found}")
        _check_pixels(model, checkpoint, address)
    absent = [f"{n} {tuple(p.shape)}" for n, p in model.named_parameters() if n not in plan]
    if whole and (absent or checkpoint.network != ours.network):
        networks = f"the checkpoint is {checkpoint.network}, the config asks for {ours.network}"
        raise ISONetError(f"{address} does not fit: {networks}; not filled: {_some(absent)}")
    data: Any = getattr(model, "classes", None)  # what a detector is trained on
    if whole:
        model.classes = checkpoint.classes  # type: ignore[assignment]
    elif checkpoint.classes and data and not num_classes:
        names, data_names = ([c["name"] for c in k] for k in (checkpoint.classes, data))
        if names != data_names:
            logger.warning("%s was trained on %s, the data have %s", address, names, data_names)
    _copy(model, plan)
    filled_or_fixed = {*plan, "pixel_mean", "pixel_std"}
    others = (n.rsplit(".", 1) for n in ours.state if n not in filled_or_fixed)
    initialized = sorted({layer for layer, leaf in others if leaf != "num_batches_tracked"})
    line = f"{len(plan)} tensors filled; initialized: {', '.join(initialized) or 'nothing'}"
    if reshaped:
        line += f"; of another shape: {', '.join(reshaped)}"
    if num_classes and backbone is not checkpoint:
        line += "; its classifier is not used"
    logger.info("%s: %s, %s", address, checkpoint.network, line)


def network_of_checkpoint(checkpoint: Checkpoint) -> nn.Module:
    if checkpoint.network is None:
        raise ISONetError("the file holds no ISONet or ResNet")
    network = checkpoint.network.build()
    load_backbone(network, checkpoint)
    return network


def network_of(source: str) -> nn.Module:
    """The network of a weight file or address, or of a config (.yaml), at initialization."""
    if not source.endswith((".yaml", ".yml")):
        return network_of_checkpoint(read_weights(resolve_weights(source)))
    from detectron2.modeling import build_backbone

    from ..config import find_config_file, get_cfg, merge_config_file

    cfg = get_cfg()
    merge_config_file(cfg, find_config_file(source))
    cfg.MODEL.DEVICE = "cpu"
    backbone = build_backbone(cfg)
    return getattr(backbone, "bottom_up", backbone)
