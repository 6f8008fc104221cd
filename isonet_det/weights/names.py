"""Anybody's parameter names to ours: the authors', torchvision's, Caffe2's and our own files."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor

from ..errors import ISONetError
from .network import Network, backbone_prefix, network_of_state
from .reader import read_file

StateDict = dict[str, Tensor]
_Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

_NUMBER_OF = {"a": 1, "b": 2, "c": 3}  # of a convolution in its block
# Each table turns another program's names into ours, one substitution after the other. The
# first pattern of a table tells whose names they are.
_AUTHORS: _Rules = (
    (r"^s(\d)\.b(\d+)\.", lambda m: f"res{int(m[1]) + 1}.{int(m[2]) - 1}."),
    (r"(^|\.)proj\.", r"\1shortcut."),
    (r"\.f\.shared_scalar\.scale$", ".res_multiplier"),
    (r"\.f\.([abc])_relu\.", lambda m: f".activation{_NUMBER_OF[m[1]]}."),
    (r"\.f\.([abc])\.", lambda m: f".conv{_NUMBER_OF[m[1]]}."),
    (r"(^stem|\.\d+)\.relu\.", r"\1.activation."),
    (r"^head\.fc\.", "linear."),
)
_TORCHVISION: _Rules = (
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)
NOT_A_WEIGHT = "num_batches_tracked"  # what a BatchNorm counts


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weight file, under Detectron2's names.

    Attributes:
        state: name to tensor; backbone names start with "stem." and "res2." in an ImageNet file
            and have a prefix such as "backbone.bottom_up." in a detector's.
        source: whose names the file had: "authors", "torchvision", "caffe2" or "detectron2".
        classes: id and name of each that a detector predicts, where the file says.
    """

    state: StateDict
    source: str = "detectron2"
    classes: list[dict[str, Any]] | None = None

    @property
    def prefix(self) -> str | None:
        """What stands before "stem." in the backbone's names; None without a backbone."""
        return backbone_prefix(self.state)

    @property
    def network(self) -> Network | None:
        """The ISONet or ResNet in it, if there is one."""
        return network_of_state(self.state)

    @property
    def num_classes(self) -> int | None:
        """Of its classifier; None without one."""
        bias = self.state.get(f"{self.prefix}linear.bias")
        return None if bias is None else len(bias)


def _tensors(content: Any, path: str) -> StateDict:
    for key in ("net", "model", "state_dict", "blobs"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ISONetError(f"{path} holds a {type(content).__name__}, not names and tensors")
    state: StateDict = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(name, str) and isinstance(value, Tensor):
            state[name] = value
    if not state:
        raise ISONetError(f"{path} holds no named tensors")
    return state


def _rename(state: StateDict, rules: _Rules) -> StateDict:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _from_caffe2(state: StateDict) -> StateDict:
    """Detectron2's converted MSRA and Caffe2 ResNets, whose BatchNorm is folded to scale and
    shift."""
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
    """Bring the content of a weight file (:func:`read_file`) or a state dict to our names.

    Takes the authors' flat state dict and their training snapshot (under "net"), torchvision's
    ResNets, Caffe2's ("blobs"), and Detectron2's or our own checkpoints (under "model" or flat).

    Raises:
        ISONetError: there are no named tensors in it.
    """
    state = _tensors(content, path)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: t for name, t in state.items() if not name.endswith(NOT_A_WEIGHT)}
    if "conv1_w" in state:
        return Checkpoint(_from_caffe2(state), "caffe2")
    for source, rules in (("authors", _AUTHORS), ("torchvision", _TORCHVISION)):
        if any(re.match(rules[0][0], name) for name in state):
            return Checkpoint(_rename(state, rules), source)
    return Checkpoint(state)


def read_weights(path: str | Path) -> Checkpoint:
    """The checkpoint in a weight file of any kind: :func:`read_file` and :func:`parse_checkpoint`.

    Raises:
        ISONetError: it cannot be read.
    """
    content = read_file(path)
    classes = content.get("classes") if isinstance(content, Mapping) else None
    return replace(parse_checkpoint(content, str(path)), classes=classes)
