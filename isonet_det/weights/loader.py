"""``MODEL.WEIGHTS``: from an address to a filled detector, strictly."""

import hashlib
import logging
import os
import re
from dataclasses import replace
from typing import Any

import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor, nn

from .. import model_zoo
from ..errors import IsonetError
from ..modeling.isonet import PIXEL_MEAN, PIXEL_STD
from .download import fetch
from .reader import (
    Checkpoint,
    StateDict,
    describe_network,
    load_backbone,
    parse_checkpoint,
    read_file,
)

logger = logging.getLogger(__name__)

_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"


def resolve_weights(address: str) -> str:
    """Local path of a ``MODEL.WEIGHTS`` address, downloaded if needed.

    Takes a path, ``isonet://NAME`` (a zoo entry), ``torchvision://resnet34``,
    ``detectron2://PATH`` and http(s) addresses.

    Raises:
        IsonetError: no such file or entry, another scheme, or a failed download.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        path = os.path.expanduser(address)
        if not os.path.isfile(path):
            raise IsonetError(f"MODEL.WEIGHTS {address}: there is no such file")
        return path
    if scheme == "isonet":
        return model_zoo.get_checkpoint(rest)
    if scheme == "torchvision":
        return model_zoo.get_checkpoint(re.sub(r"^resnet(\d+)$", r"ResNet-\1", rest))
    if scheme == "detectron2":
        return _fetch_address(_DETECTRON2 + rest)
    if scheme in ("http", "https"):
        return _fetch_address(address)
    raise IsonetError(
        f"MODEL.WEIGHTS {address}: the scheme is one of isonet, torchvision, detectron2, http, "
        f"https, not {scheme}"
    )


def _fetch_address(address: str) -> str:
    # Two addresses may end in the same file name.
    tag = hashlib.sha256(address.encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]", "_", address.rsplit("/", 1)[-1])[-80:]
    return str(fetch(address, f"{tag}-{name}"))


def _from_caffe2(state: StateDict) -> Checkpoint:
    """Detectron2's converted MSRA and Caffe2 ResNets, whose BatchNorm is folded to scale and
    shift."""
    named, _ = convert_c2_detectron_names(
        {n: t for n, t in state.items() if not n.endswith("_momentum")}
    )
    for name in [n for n in named if n.endswith(".norm.weight")]:
        prefix = name.removesuffix("weight")
        like = named[name]
        named.setdefault(f"{prefix}running_mean", torch.zeros_like(like))
        # FrozenBatchNorm2d adds its eps, 1e-5.
        named.setdefault(f"{prefix}running_var", torch.ones_like(like) - 1e-5)
    return Checkpoint(named, "caffe2")


def read_weights(path: str) -> Checkpoint:
    """The checkpoint in a file, of whatever kind (see :func:`isonet_det.checkpoint.read_file`).

    Raises:
        IsonetError: it cannot be read.
    """
    content = read_file(path)
    if isinstance(content, dict) and isinstance(content.get("blobs"), dict):
        content = content["blobs"]
    checkpoint = parse_checkpoint(content, path)
    if "conv1_w" in checkpoint.state:
        return _from_caffe2(checkpoint.state)
    classes = content.get("classes") if isinstance(content, dict) else None
    return replace(checkpoint, classes=classes)


def _check_pixels(model: nn.Module, checkpoint: Checkpoint, address: str) -> None:
    """ImageNet weights see the pixels that they were trained on, or nothing starts."""
    # Only this package's networks, the authors' among them, call it stem.conv.
    ours = f"{checkpoint.prefix}stem.conv.weight" in checkpoint.state
    if not (ours or checkpoint.source == "torchvision") or not hasattr(model, "pixel_mean"):
        return
    mean: Tensor = model.pixel_mean  # type: ignore[assignment]
    std: Tensor = model.pixel_std  # type: ignore[assignment]
    order = getattr(model, "input_format", "RGB")
    found = (order, mean.flatten().tolist(), std.flatten().tolist())
    fits = order == "RGB" and all(
        torch.allclose(tensor.flatten().cpu().float(), torch.tensor(wanted), atol=0.1)
        for tensor, wanted in ((mean, PIXEL_MEAN), (std, PIXEL_STD))
    )
    if not fits:
        raise IsonetError(
            f"{address} was trained on RGB images of mean {list(PIXEL_MEAN)} and std "
            f"{list(PIXEL_STD)}, the config feeds {found[0]} of mean "
            f"{[round(v, 3) for v in found[1]]} and std {[round(v, 3) for v in found[2]]}; set "
            "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD"
        )


def load_weights(model: nn.Module, address: str, whole: bool = False) -> None:
    """Fill a detector or classifier from ``MODEL.WEIGHTS``, strictly: the backbone wholly, and the
    rest from a detector's checkpoint as far as names and shapes agree; what stays at its initial
    values is logged in one line.

    Args:
        model: the detector or :class:`isonet_det.ImageClassifier`, wrapped in
            DistributedDataParallel or not.
        address: as for :func:`resolve_weights`; "" leaves the model as it is.
        whole: for evaluation: every parameter must be filled.

    Raises:
        IsonetError: the file cannot be had or does not fit. The model is unchanged then.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    own = model.state_dict()
    classes = Checkpoint(own, "detectron2").num_classes
    if not address:
        if whole:
            what = "detector's checkpoint" if classes is None else "classifier"
            raise IsonetError(f"MODEL.WEIGHTS is empty; evaluation needs a trained {what}")
        logger.info("MODEL.WEIGHTS is empty: the model starts from its initialization.")
        return
    checkpoint = read_weights(resolve_weights(address))
    found = checkpoint.num_classes
    if classes is not None:
        if whole and found != classes:
            raise IsonetError(
                f"{address} has {'no classifier' if found is None else f'{found} classes'}, the "
                f"config asks for {classes} (PRETRAIN.NUM_CLASSES)"
            )
        reshaped = [] if found in (None, classes) else ["linear"]
        fitting_part = checkpoint.without_classifier() if reshaped else checkpoint
        _log(address, checkpoint, own, set(load_backbone(model, fitting_part)), reshaped)
        return
    no_detector = checkpoint.prefix == "" or found is not None
    if no_detector and "stem" not in {n.split(".")[0] for n in own}:
        # An ImageNet file, or a pre-training run's checkpoint, for a detector.
        if whole:
            raise IsonetError(
                f"{address} holds a backbone ({checkpoint.network}) and no detector; evaluation "
                "needs a trained detector's checkpoint"
            )
        _check_pixels(model, checkpoint, address)
        filled = set(load_backbone(model, checkpoint))
        _log(address, checkpoint, own, filled, [])
        return
    # Heads of other classes: other shapes.
    other = {n: t for n, t in checkpoint.state.items() if n in own}
    fitting = {n: t for n, t in other.items() if t.shape == own[n].shape}
    reshaped = sorted(set(other) - set(fitting))
    if whole:
        parameters = dict(model.named_parameters())
        absent = [n for n in parameters if n not in fitting]
        extra = [n for n in checkpoint.state if n not in own]
        if absent or (extra and checkpoint.network != describe_network(own)):
            name = (absent or extra)[0]
            shape = tuple(checkpoint.state[name].shape) if name in checkpoint.state else "nothing"
            expected = tuple(own[name].shape) if name in own else "nothing"
            raise IsonetError(
                f"{address} does not fit the config: the checkpoint is {checkpoint.network}, the "
                f"config asks for {describe_network(own)}; {len(absent)} parameters are not "
                f"filled, {len(extra)} are unexpected; {name}: found {shape}, expected {expected}"
            )
    filled = set(load_backbone(model, checkpoint))
    _label(model, checkpoint, address, whole)
    with torch.no_grad():
        for name, tensor in fitting.items():
            if name not in filled:
                own[name].copy_(tensor)
    _log(address, checkpoint, own, filled | set(fitting), reshaped)


def _label(model: nn.Module, checkpoint: Checkpoint, address: str, whole: bool) -> None:
    """A detector has the classes of its checkpoint; one that goes on to train has those of its
    data."""
    if whole:
        model.classes = checkpoint.classes  # type: ignore[assignment]
    elif checkpoint.classes and getattr(model, "classes", None):
        classes: Any = model.classes
        found, own = ([c["name"] for c in k] for k in (checkpoint.classes, classes))
        if found != own:
            logger.warning("%s was trained on %s, the data have %s", address, found, own)


def _log(
    address: str, checkpoint: Checkpoint, own: StateDict, filled: set[str], reshaped: list[str]
) -> None:
    pixels = ("pixel_mean", "pixel_std")
    fresh = sorted({n.rsplit(".", 1)[0] for n in own if n not in filled and n not in pixels})
    unused = checkpoint.num_classes is not None and Checkpoint(own, "").num_classes is None
    logger.info(
        "%s: %s, %d tensors filled; initialized: %s%s%s",
        address,
        checkpoint.network,
        len(filled),
        ", ".join(fresh) or "nothing",
        f"; of another shape: {', '.join(reshaped)}" if reshaped else "",
        "; its classifier is not used" if unused else "",
    )
