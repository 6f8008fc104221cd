"""A whole detector outside of Detectron2: ONNX or TorchScript, for photos of any size."""

import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from torch import Tensor, nn

from ..errors import ISONetError
from ..files import write_whole
from ..modeling.family import fuse_for_inference
from .export import onnx_session, require_onnx
from .predictor import Predictor, read_rgb

FORMATS = ("onnx", "torchscript")
OPSET = 16  # the first whose RoiAlign is Detectron2's
# Shortest edges of the check, relative to INPUT.MIN_SIZE_TEST, at which the file is traced.
CHECKED = (0.75, 1.25)
TOLERANCE = 1e-3

_FIELDS = {"pred_boxes": "boxes", "pred_classes": "classes", "pred_masks": "masks"}


def _detect(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """(3, H, W) in ``INPUT.FORMAT``, 0 to 255: "boxes" (N, 4) in its pixels, "classes" (N,),
    "scores" (N,), and "masks" (N, 1, h, w), the probabilities inside of each box."""
    batch = [{"image": image}]
    if isinstance(model, GeneralizedRCNN):
        instances = model.inference(batch, do_postprocess=False)[0]
    else:
        instances = model(batch)[0]["instances"]
    fields = {_FIELDS.get(name, name): value for name, value in instances.get_fields().items()}
    return {**fields, "boxes": fields["boxes"].tensor}


def _traceable(predictor: Predictor, image: Tensor) -> TracingAdapter:
    model = predictor.model
    keypoints = getattr(getattr(model, "roi_heads", None), "keypoint_on", False)
    if type(model) not in (GeneralizedRCNN, RetinaNet) or keypoints:
        raise ISONetError(
            "export of a whole detector: expected GeneralizedRCNN without keypoints or RetinaNet, "
            f"got {type(model).__name__}{' with keypoints' if keypoints else ''}; its backbone is "
            "exported by --part backbone"
        )
    return TracingAdapter(fuse_for_inference(model), image, _detect).eval()


def _photo(predictor: Predictor, path: str, scale: float = 1.0) -> Tensor:
    """A photo as the detector takes it, its shortest edge ``scale`` times the config's."""
    photo = read_rgb(path)
    if photo is None:
        raise ISONetError(f"photo {path} is missing or cannot be read")
    return predictor.pixels(photo, scale)


@torch.no_grad()
def export_detector(predictor: Predictor, photo: str, path: str | Path, kind: str) -> list[str]:
    """Write a detector that takes one image (3, H, W), resized, on a 0-255 scale, of any height and
    width, and returns its detections (:func:`_detect`).

    Args:
        predictor: on the CPU.
        photo: to trace it with.
        path: the file, written whole or not at all.
        kind: "onnx" or "torchscript" (traced, with torchvision's operators).

    Returns:
        the names of the outputs, in their order.

    Raises:
        ISONetError: a detector or format of another kind, a photo that cannot be read, or a package
            is missing.
    """
    if kind not in FORMATS:
        raise ISONetError(f"the format of a detector is one of {', '.join(FORMATS)}, not {kind!r}")
    image = _photo(predictor, photo)
    adapter = _traceable(predictor, image)
    names = sorted(_detect(adapter.model, image))  # as the adapter flattens them
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace keeps as it is; the check will tell
        if kind == "torchscript":
            torch.jit.save(torch.jit.trace(adapter, (image,), check_trace=False), file)
        else:
            require_onnx()
            torch.onnx.export(
                adapter,
                (image,),
                file,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes={
                    "image": {1: "height", 2: "width"},
                    **{name: {0: "detections"} for name in names},
                },
            )
    with write_whole(path) as f:
        f.write(file.getvalue())
    return names


def _runner(path: str | Path, kind: str) -> Callable[[Tensor], list[Tensor]]:
    if kind == "torchscript":
        loaded = torch.jit.load(path)
        return lambda image: list(loaded(image))
    session = onnx_session(path)
    return lambda image: [torch.from_numpy(v) for v in session.run(None, {"image": image.numpy()})]


@torch.no_grad()
def check_detector(
    predictor: Predictor, photos: Sequence[str], path: str | Path, kind: str
) -> tuple[float, int]:
    """Run an exported file beside PyTorch on photos, at sizes that it was not traced at.

    Returns:
        the largest difference, of scores, of masks' probabilities and of boxes relative to the
        image's longest edge; and how many detections were compared.

    Raises:
        ISONetError: they differ by more than 1e-3, or nothing was detected.
    """
    run, largest, count = _runner(path, kind), 0.0, 0
    for photo in photos:
        for scale in CHECKED:
            image = _photo(predictor, photo, scale)
            expected = _detect(predictor.model, image)
            actual = dict(zip(sorted(expected), run(image), strict=True))
            size = "x".join(map(str, image.shape[1:]))
            difference = _difference(expected, actual, max(image.shape[1:]))
            if not difference < TOLERANCE:
                raise ISONetError(
                    f"{path} differs from PyTorch on {photo} at {size} by {difference:.2g}, more "
                    f"than {TOLERANCE:g}"
                )
            largest, count = max(largest, difference), count + len(expected["scores"])
    if not count:
        raise ISONetError(
            f"nothing is detected on {', '.join(photos)}, so that {path} is not checked: expected "
            "photos with objects of the detector's classes, and its trained weights"
        )
    return largest, count


def _difference(expected: dict[str, Tensor], actual: dict[str, Tensor], longest: int) -> float:
    if len(expected["scores"]) != len(actual["scores"]):
        return float("inf")
    if not len(expected["scores"]):
        return 0.0
    # Equal scores may come in either order: each detection has its nearest one of its class.
    distance = torch.cdist(expected["boxes"], actual["boxes"], p=float("inf")) / longest
    distance += (expected["classes"][:, None] != actual["classes"]).float()
    nearest = distance.argmin(1)
    others = [
        (expected[name] - actual[name][nearest]).abs().max().item()
        for name in ("scores", "masks")
        if name in expected
    ]
    return max(distance.gather(1, nearest[:, None]).max().item(), *others)


def describe(cfg: CfgNode, outputs: Sequence[str], classes: Sequence[str] = ()) -> dict[str, Any]:
    """What a program needs to know of an exported file: the sizes and order of its pixels, their
    statistics (which a detector's file applies itself), its outputs and its classes."""
    return {
        "outputs": list(outputs),
        "classes": list(classes),
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
    }


def write_description(path: str | Path, description: dict[str, Any]) -> Path:
    """Write :func:`describe` beside an exported file, under its name with .json; returns where."""
    beside = Path(path).with_suffix(".json")
    with write_whole(beside) as f:
        f.write(json.dumps(description, indent=1).encode())
    return beside
