"""Anybody's parameter names to ours, and which network a state dict is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ISONetError
from ..modeling import FAMILIES
from ..modeling.family import (
    BLOCKS_PER_STAGE,
    BOTTLENECK_DEPTHS,
    STAGE_NAMES,
    Family,
    NameRules,
    StagedNetwork,
)
from .reader import read_file

StateDict = dict[str, Tensor]

_TORCHVISION = NameRules(
    "torchvision",
    r"layer\d\.",
    (
        (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
        (r"^conv1\.", "stem.conv1."),
        (r"^bn1\.", "stem.conv1.norm."),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
        (r"^fc\.", "linear."),
    ),
)
_RULES = (*(family.authors for family in FAMILIES.values()), _TORCHVISION)


@dataclass(frozen=True)
class Network:
    """A network of a family, as its parameters' names tell it; 0 blocks for a stage without."""

    family: Family
    options: Any
    blocks: tuple[int, ...]
    bottleneck: bool

    @property
    def depths(self) -> list[int]:
        """That these can be: several where the stages that differ are absent."""
        return [
            depth
            for depth, full in BLOCKS_PER_STAGE.items()
            if (depth in BOTTLENECK_DEPTHS) == self.bottleneck
            and all(b in (0, f) for b, f in zip(self.blocks, full, strict=True))
        ]

    def __str__(self) -> str:
        """Such as "R-ISONet-50" or "ResNet-34 with SReLU"."""
        depths = "/".join(map(str, self.depths))
        depth = f"-{depths}" if depths else f" with blocks {[*self.blocks]}"
        return self.family.title(self.options).format(depth)

    def build(self) -> StagedNetwork:
        """The network at its initialization, up to the last stage that it has."""
        if len(self.depths) != 1:
            raise ISONetError(f"the file holds {self}, no whole ISONet or ResNet")
        last = [name for name, count in zip(STAGE_NAMES, self.blocks, strict=True) if count][-1]
        return self.family.network(self.depths[0], self.options, out_features=[last])


class Checkpoint:
    """The tensors of a weight file or module, under our names. ``source`` is whose names it had,
    ``prefix`` that of the backbone's names (None without one), ``backbone`` these without it (the
    res5 of a C4 head among them) to those in ``state``, ``num_classes`` the classifier's."""

    def __init__(
        self, state: StateDict, source: str = "detectron2", classes: list[dict] | None = None
    ) -> None:
        self.state, self.source, self.classes = state, source, classes
        matches = (re.match(r"((?:.*\.)?)stem\.conv1?\.weight$", name) for name in state)
        self.prefix: str | None = next((match[1] for match in matches if match), None)
        ours = rf"(?:{re.escape(self.prefix or '')}|.*roi_heads\.(?=res5))"
        ours += rf"((?:stem|linear|{'|'.join(STAGE_NAMES)})\..*)(?<!num_batches_tracked)$"
        found = ((re.match(ours, name), name) for name in state if self.prefix is not None)
        self.backbone = {match[1]: name for match, name in found if match}
        self.network = _network_of(list(self.backbone)) if self.backbone else None
        bias = self.backbone.get("linear.bias")
        self.num_classes = None if bias is None else len(state[bias])


def _network_of(names: list[str]) -> Network:
    families = ((family, family.read_options(names)) for family in FAMILIES.values())
    family, options = next((f, options) for f, options in families if options is not None)
    numbers = ({m[1] for n in names if (m := re.match(rf"{s}\.(\d+)\.", n))} for s in STAGE_NAMES)
    bottleneck = any(".conv3." in n for n in names)
    return Network(family, options, tuple(map(len, numbers)), bottleneck)


def _from_caffe2(state: StateDict) -> StateDict:
    """Detectron2's converted Caffe2 ResNets, whose BatchNorm is folded."""
    from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

    renamed, _ = convert_c2_detectron_names(
        {n: t for n, t in state.items() if not n.endswith("_momentum")}
    )
    for name in [n for n in renamed if n.endswith(".norm.weight")]:
        prefix = name.removesuffix("weight")
        renamed.setdefault(f"{prefix}running_mean", torch.zeros_like(renamed[name]))
        # FrozenBatchNorm2d adds its eps, 1e-5.
        renamed.setdefault(f"{prefix}running_var", torch.ones_like(renamed[name]) - 1e-5)
    return renamed


def parse_checkpoint(content: Any, path: str = "the checkpoint") -> Checkpoint:
    """Bring a weight file's content, or a state dict of anybody's, to our names."""
    tensors, source, classes = content, "detectron2", None
    if isinstance(content, Mapping):
        source, classes = content.get("source", source), content.get("classes")
        parts = map(content.get, ("net", "model", "state_dict", "blobs"))
        tensors = next((part for part in parts if isinstance(part, Mapping)), content)
    if not isinstance(tensors, Mapping):
        raise ISONetError(f"{path} holds a {type(tensors).__name__}, not names and tensors")
    state: StateDict = {}
    for name, value in tensors.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(name, str) and isinstance(value, Tensor):
            state[name] = value
    if not state:
        raise ISONetError(f"{path} holds no named tensors")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if "conv1_w" in state:
        return Checkpoint(_from_caffe2(state), "caffe2", classes)
    for names in _RULES:
        if any(re.match(names.sign, name) for name in state):
            source, renamed = names.source, {}
            for name, tensor in state.items():
                for pattern, replacement in names.rules:
                    name = re.sub(pattern, replacement, name)
                renamed[name] = tensor
            state = renamed
            break
    return Checkpoint(state, source, classes)


def read_weights(path: str | Path) -> Checkpoint:
    return parse_checkpoint(read_file(path), str(path))
