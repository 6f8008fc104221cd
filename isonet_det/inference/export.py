"""A backbone with its FPN, or a whole detector, as TorchScript, ONNX or torch.export."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from torch import Tensor, nn

from ..errors import ISONetError
from ..files import write_file
from ..modeling.family import fuse_for_inference
from .predictor import Predictor, as_rgb

FORMATS = ("torchscript", "onnx", "torch.export")  # the first two also of a whole detector
OPSET = 16  # the first whose RoiAlign is Detectron2's
# Height and width of a backbone's image must be multiples of this: FPN adds maps that halve.
MULTIPLE = 64
SIDES = {2: "height", 3: "width"}
# Shortest edges of a detector's check, relative to INPUT.MIN_SIZE_TEST, where it is traced.
CHECKED = (0.75, 1.25)


@torch.no_grad()
def _trace(model: nn.Module, image: Tensor, kind: str, names: list[str], axes: dict) -> bytes:
    """The file of a model; ``axes`` are the dynamic ones by input and output."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace keeps as it is; the check will tell
        if kind == "torchscript":
            torch.jit.save(torch.jit.trace(model, (image,), check_trace=False), file)
        elif kind == "onnx":
            torch.onnx.export(
                model,
                (image,),
                file,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes=axes,
            )
        else:
            half = {axis: torch.export.Dim(name, min=2, max=64) for axis, name in SIDES.items()}
            shapes = {0: torch.export.Dim("batch", min=1, max=1024)}
            shapes.update({axis: MULTIPLE * side for axis, side in half.items()})
            torch.export.save(
                torch.export.export(model, (image,), dynamic_shapes={"image": shapes}), file
            )
    return file.getvalue()


def _runner(content: bytes, kind: str) -> Callable[[Tensor], list[Tensor]]:
    if kind == "torchscript":
        loaded = torch.jit.load(io.BytesIO(content))
    elif kind == "torch.export":
        loaded = torch.export.load(io.BytesIO(content)).module()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        return lambda image: list(
            map(torch.from_numpy, session.run(None, {"image": image.numpy()}))
        )
    return lambda image: list(loaded(image))


class Maps(nn.Module):
    """A backbone for exporting: a tuple of maps, and no residual scalars."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = fuse_for_inference(backbone).eval()
        self.names = list(self.backbone.output_shape())  # type: ignore[operator]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone(image)
        return tuple(maps[name] for name in self.names)


def export_backbone(backbone: nn.Module, kind: str) -> tuple[bytes, list[str]]:
    """The file of a backbone on the CPU, for sides that are multiples of 64; its maps' names."""
    maps, image = Maps(backbone), torch.zeros(2, 3, 2 * MULTIPLE, 3 * MULTIPLE)
    axes = {"image": {0: "batch", **SIDES}}
    axes.update({n: {0: "batch", 2: f"{n} height", 3: f"{n} width"} for n in maps.names})
    return _trace(maps, image, kind, maps.names, axes), maps.names


@torch.no_grad()
def check_backbone(
    backbone: nn.Module, content: bytes, kind: str, size: tuple[int, int] = (192, 256)
) -> float:
    """Largest difference to PyTorch on a random image, relative to a map's largest value."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    pairs = zip(_runner(content, kind)(image), Maps(backbone)(image), strict=True)
    difference = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    if not difference < 1e-4:
        raise ISONetError(f"the file differs from PyTorch by {difference:.2g}, more than 1e-4")
    return difference


def _detect(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """An image (3, H, W) to its detections; "masks" are the probabilities inside of each box."""
    batch = [{"image": image}]
    if isinstance(model, GeneralizedRCNN):
        instances = model.inference(batch, do_postprocess=False)[0]
    else:
        instances = model(batch)[0]["instances"]
    fields = {n.removeprefix("pred_"): value for n, value in instances.get_fields().items()}
    return {**fields, "boxes": fields["boxes"].tensor}


@torch.no_grad()
def export_detector(predictor: Predictor, photo: str, kind: str) -> tuple[bytes, list[str]]:
    """The file of a detector on the CPU, traced with the photo; its outputs' names (_detect)."""
    if kind not in FORMATS[:2]:
        raise ISONetError(f"the format of a detector is one of {FORMATS[:2]}, not {kind!r}")
    model = predictor.model
    keypoints = getattr(getattr(model, "roi_heads", None), "keypoint_on", False)
    if type(model) not in (GeneralizedRCNN, RetinaNet) or keypoints:
        found = f"{type(model).__name__}{' with keypoints' if keypoints else ''}"
        expected = "--part backbone, or GeneralizedRCNN without keypoints, or RetinaNet"
        raise ISONetError(f"export of a detector: expected {expected}; got {found}")
    image = predictor.pixels(as_rgb(photo))
    adapter = TracingAdapter(fuse_for_inference(model), image, _detect).eval()
    names = sorted(_detect(adapter.model, image))  # as the adapter flattens them
    axes = {"image": {1: "height", 2: "width"}, **{n: {0: "detections"} for n in names}}
    return _trace(adapter, image, kind, names, axes), names


@torch.no_grad()
def check_detector(
    predictor: Predictor, photos: Sequence[str], content: bytes, kind: str
) -> tuple[float, int]:
    """Largest difference to PyTorch at sizes that it was not traced at, and how many compared."""
    run, largest, count = _runner(content, kind), 0.0, 0
    for photo in photos:
        for scale in CHECKED:
            image = predictor.pixels(as_rgb(photo), scale)
            expected = _detect(predictor.model, image)
            actual = dict(zip(sorted(expected), run(image), strict=True))
            difference = _difference(expected, actual, max(image.shape[1:]))
            if not difference < 1e-3:
                where = f"on {photo}, {tuple(image.shape[1:])}, by {difference:.2g}"
                raise ISONetError(f"the file differs from PyTorch {where}, more than 0.001")
            largest, count = max(largest, difference), count + len(expected["scores"])
    if not count:
        raise ISONetError(f"nothing is detected on {photos}: the check needs other photos")
    return largest, count


def _difference(expected: dict[str, Tensor], actual: dict[str, Tensor], longest: int) -> float:
    if len(expected["scores"]) != len(actual["scores"]):
        return float("inf")
    if not len(expected["scores"]):
        return 0.0
    # Equal scores may come in either order: each detection has its nearest one of its class.
    distance = torch.cdist(expected["boxes"], actual["boxes"], p=float("inf")) / longest
    distance += (expected["classes"][:, None] != actual["classes"]).float()
    closest, nearest = distance.min(1)
    parts = {"scores", "masks"} & expected.keys()
    others = [(expected[n] - actual[n][nearest]).abs().max().item() for n in parts]
    return max(closest.max().item(), *others)


def write_description(
    path: str | Path, cfg: CfgNode, outputs: Sequence[str], classes: Sequence[str] = ()
) -> Path:
    description = {
        "outputs": list(outputs),
        "classes": list(classes),
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
    }
    beside = Path(path).with_suffix(".json")
    if beside.exists() and "shortest_edge" not in beside.read_text(errors="replace"):
        raise ISONetError(f"{beside} is no description of an export; name the file otherwise")
    write_file(beside, json.dumps(description, indent=1))
    return beside
