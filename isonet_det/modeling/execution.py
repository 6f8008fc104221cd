"""How a model's operations run, not what they compute: memory format and compilation."""

import logging
from typing import Any

import torch
from torch import nn

from ..errors import ISONetError
from .family import StagedNetwork

logger = logging.getLogger(__name__)


def set_execution(model: nn.Module, channels_last: bool, compiled: bool) -> nn.Module:
    """Choose, in place, a model's memory format, and whether its backbone is compiled."""
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        networks = (part for part in model.modules() if isinstance(part, StagedNetwork))
        backbone = getattr(model, "backbone", None) or next(networks, None)
        if backbone is None:
            raise ISONetError(f"MODEL.COMPILE: {type(model).__name__} has no backbone")
        if not channels_last and next(backbone.parameters()).device.type != "cpu":
            logger.warning("MODEL.COMPILE without MODEL.CHANNELS_LAST: a step may take longer")
        compile_backbone(backbone)
    return model


def compile_backbone(backbone: nn.Module, **options: Any) -> None:
    """Compile a backbone in place for any size; where that fails it runs as it is."""

    # Hundreds of lines about sizes, in some versions, of which none is for the reader.
    logging.getLogger("torch.utils._sympy.interp").setLevel(logging.ERROR)
    backbone.compile(dynamic=True, **options)
    compiled = backbone._compiled_call_impl

    def call(*args: Any) -> Any:
        if torch.jit.is_tracing():
            return backbone._call_impl(*args)
        try:
            return compiled(*args)  # type: ignore[misc]
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            logger.warning("MODEL.COMPILE: the backbone is not compiled: %s", reason)
            backbone._compiled_call_impl = None  # type: ignore[assignment]
            return backbone(*args)

    backbone._compiled_call_impl = call  # type: ignore[assignment]
