"""Training data as a function of a seed and a position, for exact resume."""

import hashlib
import logging
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm

from ..errors import ISONetError
from .augmentation import CopyPaste, copy_paste_probability
from .mapper import NamingDatasetMapper, ResizeToPixels, training_mapper
from .photos import UnreadablePhotoError

logger = logging.getLogger(__name__)

READ_ATTEMPTS = 3
WORKER_GRACE = 60  # seconds that a worker outlives a SIGTERM
RETRY_SECONDS = 0.5  # a network file system's hiccup
SHARED_MEMORY = "/dev/shm"


def mixed_seed(*parts: int | str) -> int:
    """One 32-bit seed out of several numbers or words."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def seed_everything(seed: int) -> None:
    """Seed the generators that augmentations and models draw from; waits for no GPU."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def step_seed(seed: int, rank: int, iteration: int, micro_batch: int) -> int:
    """Seed of one micro-batch's random draws in a training step (sampled proposals, dropout)."""
    return mixed_seed(seed, "step", rank, iteration, micro_batch)


class TrainBatches(torch.utils.data.Sampler):
    """One process' endless batches, less the first ``skip``: lists of (index, augmentation's seed).
    They are grouped by orientation as Detectron2's, but before images are loaded: without state."""

    def __init__(
        self,
        make_sampler: Callable[[int], Iterator[int]],
        portrait: list[bool],
        batch_size: int,
        seed: int,
    ) -> None:
        self.make_sampler, self.portrait, self.batch_size = make_sampler, portrait, batch_size
        self.seed, self.skip = seed, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        groups: tuple[list, list] = ([], [])
        count, rank = 0, comm.get_rank()
        for position, index in enumerate(self.make_sampler(self.seed)):
            group = groups[self.portrait[index]]
            group.append((index, position))
            if len(group) == self.batch_size:
                count += 1
                if count > self.skip:
                    yield [(i, mixed_seed(self.seed, "image", rank, p)) for i, p in group]
                group.clear()


class SeededDataset(torch.utils.data.Dataset):
    """Images, mapped under a seed each; one that stays unreadable is stood in for by the next."""

    def __init__(self, records, mapper: Callable[[Any], dict]) -> None:
        self.records, self.mapper = records, mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, seed = key
        unreadable: list[str] = []
        for attempt in range(READ_ATTEMPTS * len(self)):
            offset, retry = divmod(attempt, READ_ATTEMPTS)
            seed_everything(seed)
            try:
                data = self.mapper(self.records[(index + offset) % len(self)])
            except UnreadablePhotoError as error:
                if retry + 1 == READ_ATTEMPTS:
                    unreadable.append(str(error))
                else:
                    time.sleep(RETRY_SECONDS)
                continue
            return {**data, "stream": key, "unreadable": unreadable}
        raise ISONetError(f"no photo of the data set can be read: {unreadable[0]}")


def check_loader(loader: torch.utils.data.DataLoader, seed: int) -> None:
    """Meet here, and not in a process of the loader, what fails at the first photo or hangs."""
    dataset: SeededDataset = loader.dataset  # type: ignore[assignment]
    try:
        mapped = dataset[0, seed]
    except ISONetError:
        raise
    except Exception as error:
        if not isinstance(dataset.mapper, (NamingDatasetMapper, CopyPaste)):
            raise  # somebody's own
        raise ISONetError(f"INPUT.AUGMENTATION: the first photo fails: {error!r}") from error
    if not loader.num_workers:
        return
    # Every batch on its way is some files, and a process that meets the limit waits forever.
    files = 8 * loader.num_workers + 64
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < files:
        needs = f"DATALOADER.NUM_WORKERS {loader.num_workers} may need {files}"
        raise ISONetError(f"this process may open {limit} files, and {needs}: ulimit -n 8192")
    batch = loader.batch_sampler.batch_size  # type: ignore[union-attr]
    needed = mapped["image"].nbytes * batch * loader.num_workers * (loader.prefetch_factor or 0)
    free = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else needed
    if free < needed:
        raise ISONetError(
            f"shared memory, {SHARED_MEMORY}, has {free / 1e6:.1f} MB free, and DATALOADER."
            f"NUM_WORKERS {loader.num_workers} hand over {needed / 1e6:.1f} MB: docker's --shm-size"
        )


def listed(records: Sequence[dict[str, Any]], grouped: bool) -> tuple[Any, list[bool]]:
    """Records as one block, which workers share, and whether each is grouped as portrait."""
    portrait = [grouped and r.get("width", 1) <= r.get("height", 0) for r in records]
    return DatasetFromList(records, copy=False), portrait


def build_train_loader(cfg: CfgNode, seed: int) -> torch.utils.data.DataLoader:
    """The training loader of this process; its ``batch_sampler`` is a :class:`TrainBatches`."""
    mapper = training_mapper(cfg)
    parts = build_detection_train_loader.from_config(cfg, mapper=(), sampler=())
    records, portrait = listed(parts["dataset"], cfg.DATALOADER.ASPECT_RATIO_GROUPING)
    probability = copy_paste_probability(cfg)
    if probability:
        mapper = CopyPaste(mapper, records, probability)

    def make_sampler(sampler_seed: int) -> Iterator[int]:
        # Detectron2's samplers take their seed from SEED since February 2024, from numpy's
        # generator before; some still do.
        seeded = cfg.clone()
        seeded.defrost()
        seeded.SEED = sampler_seed
        seed_everything(sampler_seed)
        parts = build_detection_train_loader.from_config(seeded, mapper=(), dataset=records)
        return iter(parts["sampler"])

    return seeded_loader(
        records,
        mapper,
        make_sampler,
        portrait=portrait,
        seed=seed,
        batch_size=micro_batch_size(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def micro_batch_size(cfg: CfgNode) -> int:
    return cfg.SOLVER.IMS_PER_BATCH // (cfg.SOLVER.ACCUMULATE_STEPS * comm.get_world_size())


def build_validation_loader(cfg: CfgNode, name: str) -> torch.utils.data.DataLoader:
    """The annotated photos of a test set as training maps them, but at the test's size."""
    resize = ResizeToPixels([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    mapper = NamingDatasetMapper(cfg, True, augmentations=[resize], recompute_boxes=False)
    return build_detection_test_loader(
        dataset=get_detection_dataset_dicts(name, filter_empty=True),
        mapper=mapper,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def seeded_loader(
    records,
    mapper: Callable[[Any], dict],
    make_sampler: Callable[[int], Iterator[int]],
    *,
    portrait: list[bool],
    seed: int,
    batch_size: int,
    num_workers: int,
) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        SeededDataset(records, mapper),
        batch_sampler=TrainBatches(make_sampler, portrait, batch_size, seed),
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_start_worker,
    )


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # A signal to the whole process group is the training process' to answer: it finishes its
    # iteration, for which it needs the data, and then ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: signal.alarm(WORKER_GRACE))


def end_workers(iterator: Any) -> None:
    """End a loader's processes; a SIGTERM that meets one while it exits is no error."""
    if hasattr(iterator, "_shutdown_workers"):
        try:
            iterator._shutdown_workers()
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
