"""Parameters, activations and FLOPs of a detector, by fvcore."""

from typing import Any

import numpy as np
import torch
from detectron2.utils.analysis import FlopCountAnalysis, activation_count_operators
from fvcore.nn import parameter_count
from torch import nn


def _elements(inputs: list[Any], outputs: list[Any]) -> int:
    """One operation for each element that comes out."""
    shape = outputs[0].type().sizes()
    return int(np.prod(shape)) if shape else 0


def analyze_model(
    model: nn.Module, height: int = 800, width: int = 1216
) -> dict[str, dict[str, float]]:
    """Counts for one image, per top-level part ("" for all), of a detector on the CPU."""
    image = [{"image": torch.zeros(3, height, width), "height": height, "width": width}]
    flops = FlopCountAnalysis(model, image)
    flops.set_op_handle("aten::where", _elements)  # SReLU, as it is traced
    flops.set_op_handle("aten::mul", _scalar_times_weight)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_module = flops.by_module()
    activations = activation_count_operators(model, image)
    parts = ["", *(name for name, _ in model.named_children())]
    inner = getattr(getattr(model, "backbone", None), "bottom_up", None)
    if inner is not None:
        parts.append("backbone.bottom_up")
    parameters = parameter_count(model)
    return {
        "parameters": {part: float(parameters[part]) for part in parts},
        # Detectron2's tracing adapter calls the detector "model".
        "gflops": {p: by_module[f"model.{p}" if p else ""] / 1e9 for p in parts},
        "million activations": {"": sum(activations.values())},
    }


def _scalar_times_weight(inputs: list[Any], outputs: list[Any]) -> int:
    # Of all products, those of a kernel with a (1, 1, 1, 1) scalar; coordinates are not counted.
    shapes = [value.type().sizes() for value in inputs[:2]]
    return _elements(inputs, outputs) if [1, 1, 1, 1] in shapes else 0
