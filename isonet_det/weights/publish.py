"""Publishing weight files: conversion to our names, and telling what a file is."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import ISONetError
from ..files import sha256_of, write_whole
from ..options import STAGE_NAMES
from ..regularizer.penalty import conv_orthogonality
from .names import Checkpoint, StateDict

SUFFIXES = (".safetensors", ".pth", ".pkl")
# What stock Detectron2 reads beside the tensors: match names by their ends, so that one file
# fits a plain backbone and one inside an FPN.
_ENVELOPE = {"__author__": "isonet_det", "matching_heuristics": True}


def _backbone_state(checkpoint: Checkpoint, source: str) -> StateDict:
    prefix = checkpoint.prefix
    if prefix is None:
        raise ISONetError(f"{source} holds no ISONet or ResNet")
    parts = ("stem", *STAGE_NAMES, "linear")
    return {
        name.removeprefix(prefix): tensor.contiguous().clone()
        for name, tensor in checkpoint.state.items()
        if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in parts
    }


def write_weights(checkpoint: Checkpoint, destination: str | Path) -> str:
    """Write a backbone (and classifier) under our names, whole or not at all, and its hash to
    ``DESTINATION.sha256``. Optimizer state and heads are left out.

    Args:
        checkpoint: anybody's.
        destination: ``.safetensors``, ``.pth`` or ``.pkl``; the latter two are read by stock
            Detectron2 too, under its plain and its FPN builders.

    Returns:
        the file's sha256.

    Raises:
        ISONetError: no backbone in it, another suffix, or the file cannot be written.
    """
    destination = Path(destination)
    state = _backbone_state(checkpoint, "the source")

    def safetensors(f: BinaryIO) -> None:
        from safetensors.torch import save

        f.write(save(state, metadata={"format": "pt", "network": str(checkpoint.network)}))

    def pth(f: BinaryIO) -> None:
        torch.save({"model": state, **_ENVELOPE}, f)

    def pkl(f: BinaryIO) -> None:
        pickle.dump({"model": {n: t.numpy() for n, t in state.items()}, **_ENVELOPE}, f)

    writers: dict[str, Callable[[BinaryIO], None]] = dict(
        zip(SUFFIXES, (safetensors, pth, pkl), strict=True)
    )
    if destination.suffix not in writers:
        raise ISONetError(f"{destination}: the suffix is one of {', '.join(SUFFIXES)}")
    try:
        with write_whole(destination) as f:
            writers[destination.suffix](f)
        digest = sha256_of(destination)
        note = destination.with_name(f"{destination.name}.sha256")
        note.write_text(f"{digest}  {destination.name}\n")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ISONetError(f"{destination} cannot be written: {reason}") from error
    return digest


def inspect(checkpoint: Checkpoint, source: str) -> list[str]:
    """What a weight file is, one fact a line: network, names, classes, parameters, and how its
    Gram penalties look.

    Raises:
        ISONetError: there is no backbone in it.
    """
    state, network = _backbone_state(checkpoint, source), checkpoint.network
    assert network is not None
    lines = [
        f"network: {network}",
        f"names: {checkpoint.source}",
        f"residual: {network.residual}",
        f"classes: {checkpoint.num_classes or 'no classifier'}",
        f"parameters: {sum(t.numel() for t in state.values()):,} in {len(state)} tensors",
    ]
    others = len(checkpoint.state) - len(state)
    if others:
        lines.append(f"beside the backbone: {others} tensors (a detector)")
    # The stride sits on the first 3x3 of a stage, res2 excepted.
    strided = "conv2" if network.bottleneck else "conv1"
    values = []
    for name, tensor in state.items():
        if name.startswith("res") and name.endswith(".weight") and tensor.dim() == 4:
            block, _, layer = name.removesuffix(".weight").rpartition(".")
            first = block in ("res3.0", "res4.0", "res5.0") and layer == strided
            penalty = conv_orthogonality(tensor.float(), 2 if first else 1)
            values.append(penalty.item() / min(tensor.shape[:2]))
    if values:
        median = float(np.median(values))
        if not any(values):
            verdict = "exactly 0: at Delta initialization, not trained"
        elif median < 0.1:
            verdict = "near-isometric, as after training with the regularizer"
        else:
            verdict = "far from isometric: trained without the regularizer, or random"
        lines.append(
            f"Gram penalty per channel: median {median:.3g}, largest {max(values):.3g} "
            f"({verdict}; independent random rows of unit norm have about 0.5)"
        )
    return lines
