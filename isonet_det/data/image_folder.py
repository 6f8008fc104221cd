"""Classification data in ImageNet's layout, ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg."""

import functools
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ..errors import ISONetError
from .photos import unreadable_photo
from .stream import micro_batch_size, seeded_loader

logger = logging.getLogger(__name__)

# ImageNet has many; Pillow reads their pixels all the same. Here, so that worker processes of any
# kind have it, once.
warnings.filterwarnings("ignore", ".*corrupt EXIF data", UserWarning)
LAYOUT = "PRETRAIN.ROOT is the folder of train/CLASS/*.jpg and val/CLASS/*.jpg"


def image_root(cfg: CfgNode) -> str:
    """The folder of the splits: ``PRETRAIN.ROOT``, or ImageNet among Detectron2's data sets."""
    datasets = os.environ.get("DETECTRON2_DATASETS", "datasets")
    return os.path.expanduser(cfg.PRETRAIN.ROOT or os.path.join(datasets, "imagenet"))


@functools.lru_cache(maxsize=4)  # listing takes seconds for ImageNet
def _listed(folder: str) -> ImageFolder:
    try:
        images = ImageFolder(folder)
    except OSError as error:
        raise ISONetError(f"{folder} cannot be listed: {error}; {LAYOUT}") from error
    logger.info("%s: %d images of %d classes", folder, len(images), len(images.classes))
    return images


def read_split(cfg: CfgNode, split: str) -> ImageFolder:
    return _listed(os.path.join(image_root(cfg), split))


def check_image_folders(
    cfg: CfgNode, train: bool = True, classes: Sequence[str] | None = None
) -> None:
    if train and len(cfg.DATASETS.TRAIN) != 1:
        raise ISONetError(f"DATASETS.TRAIN is one folder name, not {list(cfg.DATASETS.TRAIN)}")
    known = None if classes is None else ("the checkpoint", list(classes))
    for name in [*(cfg.DATASETS.TRAIN if train else ()), *cfg.DATASETS.TEST]:
        names = read_split(cfg, name).classes
        known = known or (name, names)
        if names != known[1]:
            extra = (sorted(set(names) ^ set(known[1])) or ["the order of the others"])[0]
            where = f"{image_root(cfg)}: {known[0]} and {name}"
            raise ISONetError(f"{where} have not the same classes: {extra} is in one of them only")
    if known and len(known[1]) != cfg.PRETRAIN.NUM_CLASSES:
        found = f"{image_root(cfg)} has {len(known[1])} classes"
        raise ISONetError(f"{found}, PRETRAIN.NUM_CLASSES is {cfg.PRETRAIN.NUM_CLASSES}")


class ImageMapper:
    """One image, augmented by torchvision, as uint8: the model subtracts the mean."""

    def __init__(self, *augmentations: Callable[[Any], Any]) -> None:
        self.transform = transforms.Compose([*augmentations, transforms.PILToTensor()])

    def __call__(self, record: tuple[str, int]) -> dict[str, Any]:
        path, label = record
        try:
            with Image.open(path) as stored:
                if stored.mode[0] in "IF":
                    raise ValueError("it has 16 or 32 bits a channel and would be cut to white")
                image = stored.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise unreadable_photo(path, error) from error
        return {"image": self.transform(image), "label": label, "file_name": path}


def build_train_loader(cfg: CfgNode, seed: int) -> DataLoader:
    """Shuffled epochs without their incomplete last batch, the same for any number of processes."""
    split = read_split(cfg, cfg.DATASETS.TRAIN[0])
    world, batch = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    count = len(split) // batch * batch

    def make_sampler(sampler_seed: int) -> Iterator[int]:
        sampler: DistributedSampler = DistributedSampler(
            split, world, comm.get_rank(), seed=sampler_seed, drop_last=True
        )
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from itertools.islice(sampler, count // world)

    return seeded_loader(
        DatasetFromList(split.samples, copy=False),
        # As in the authors' construct_dataset, and so in validation.
        ImageMapper(
            transforms.RandomResizedCrop(cfg.PRETRAIN.TRAIN_CROP), transforms.RandomHorizontalFlip()
        ),
        make_sampler,
        portrait=[False] * len(split),
        seed=seed,
        batch_size=micro_batch_size(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_val_loader(cfg: CfgNode, split: str) -> DataLoader:
    """This process' share of a split, in its order, in batches as large as in training."""
    size, crop = cfg.PRETRAIN.VAL_RESIZE, cfg.PRETRAIN.VAL_CROP
    return build_detection_test_loader(
        dataset=read_split(cfg, split).samples,
        mapper=ImageMapper(transforms.Resize(size), transforms.CenterCrop(crop)),
        batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
