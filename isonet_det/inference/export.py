"""The backbone (with its FPN) outside of Detectron2: TorchScript, ONNX, torch.export."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ISONetError
from ..files import write_whole
from ..modeling.family import fuse_for_inference

FORMATS = ("torchscript", "onnx", "torch.export")
# Height and width must be multiples of this: FPN adds maps that halve.
MULTIPLE = 64


class Maps(nn.Module):
    """A backbone that takes the normalized image and returns a tuple of its maps.

    Args:
        backbone: a Detectron2 backbone; its residual scalars are folded into a copy.

    Attributes:
        names: of the maps, in their order.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = fuse_for_inference(backbone)
        self.names = list(self.backbone.output_shape())  # type: ignore[operator]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W), normalized, to the maps."""
        maps = self.backbone(image)
        return tuple(maps[name] for name in self.names)


@torch.no_grad()
def export_backbone(backbone: nn.Module, path: str | Path, kind: str) -> list[str]:
    """Write a backbone, for any batch size and any height and width that are multiples of 64, from
    128 up.

    Args:
        backbone: a Detectron2 backbone on the CPU.
        path: the file, written whole or not at all.
        kind: "torchscript" (traced), "onnx" or "torch.export".

    Returns:
        the names of the maps, in their order.

    Raises:
        ISONetError: another kind, or a package is missing.
    """
    maps = Maps(backbone).eval()
    example = torch.zeros(2, 3, 2 * MULTIPLE, 3 * MULTIPLE)
    if kind == "torchscript":
        traced = torch.jit.trace(maps, example)
        with write_whole(path) as f:
            torch.jit.save(traced, f)
    elif kind in ("onnx", "torch.export"):
        sides = {
            axis: MULTIPLE * torch.export.Dim(name, min=2, max=64)
            for axis, name in ((2, "height"), (3, "width"))
        }
        shapes = {"image": {0: torch.export.Dim("batch", min=1, max=1024), **sides}}
        program = torch.export.export(maps, (example,), dynamic_shapes=shapes)
        if kind == "torch.export":
            with write_whole(path) as f:
                torch.export.save(program, f)
        else:
            _write_onnx(program, path, maps.names)
    else:
        raise ISONetError(f"the format is one of {', '.join(FORMATS)}, not {kind!r}")
    return maps.names


def require_onnx() -> None:
    """See that there is what torch.onnx needs.

    Raises:
        ISONetError: there is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ISONetError(
            f"export to ONNX needs the package {error.name}: pip install 'isonet_det[export]'"
        ) from error


def onnx_session(path: str | Path) -> Any:
    """An ONNX file in onnxruntime, on the CPU.

    Raises:
        ISONetError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ISONetError(
            "checking an ONNX file needs onnxruntime: pip install 'isonet_det[export]'"
        ) from error
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _write_onnx(program, path: str | Path, names: list[str]) -> None:
    require_onnx()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program, input_names=["image"], output_names=names, verbose=False
        )
    assert written is not None
    with write_whole(path) as f:
        f.write(written.model_proto.SerializeToString())


@torch.no_grad()
def check_export(
    backbone: nn.Module, path: str | Path, kind: str, size: tuple[int, int] = (192, 256)
) -> float:
    """Run an exported file beside PyTorch on a random image.

    Returns:
        the largest difference relative to a map's largest value.

    Raises:
        ISONetError: onnxruntime is missing, or they differ by more than 1e-4.
    """
    maps = Maps(backbone).eval()
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = maps(image)
    if kind == "torchscript":
        found = torch.jit.load(path)(image)
    elif kind == "torch.export":
        with open(path, "rb") as f:
            found = torch.export.load(f).module()(image)
    else:
        session = onnx_session(path)
        found = [torch.from_numpy(m) for m in session.run(None, {"image": image.numpy()})]
    difference = max(
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True)
    )
    if not difference < 1e-4:
        raise ISONetError(f"{path} differs from PyTorch by {difference:.2g}, more than 1e-4")
    return difference
