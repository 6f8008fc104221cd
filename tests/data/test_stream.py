import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from support import small_cfg, take

from isonet_det import ISONetError
from isonet_det.data import stream
from isonet_det.data.augmentation import build_augmentations, paste
from isonet_det.data.photos import UnreadablePhotoError
from isonet_det.data.stream import SeededDataset, build_train_loader


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a["image_id"] == b["image_id"]
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)


@pytest.fixture(scope="module")
def expected():
    return take(build_train_loader(small_cfg(), 5), 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_position_can_be_reached_with_any_number_of_workers(expected, workers):
    cfg = small_cfg("DATALOADER.NUM_WORKERS", workers)
    assert_equal(take(build_train_loader(cfg, 5), 4, skip=2), expected[2:])


def ids(batches):
    return [[d["image_id"] for d in batch] for batch in batches]


def test_detectron2s_other_samplers_are_honored(expected):
    cfg = small_cfg("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    cfg.DATALOADER.REPEAT_THRESHOLD = 1.0  # every image more often than once
    first, second = (take(build_train_loader(cfg, 5), 6) for _ in range(2))
    assert_equal(first, second)
    assert ids(first)[0] != ids(expected)[0]


@pytest.mark.parametrize("grouping", [True, False])
def test_a_batch_has_one_orientation(grouping):
    cfg = small_cfg("DATALOADER.ASPECT_RATIO_GROUPING", grouping)
    batches = take(build_train_loader(cfg, 1), 12)
    mixed = [len({d["width"] > d["height"] for d in batch}) > 1 for batch in batches]
    assert any(mixed) != grouping


class Flaky:
    """Photo 1 fails the given number of times; each photo draws random numbers."""

    def __init__(self, failures):
        self.failures = failures

    def __call__(self, record):
        if record == 1 and self.failures:
            self.failures -= 1
            raise UnreadablePhotoError("photo 1 is missing")
        return {"photo": record, "draw": np.random.rand()}


def test_an_unreadable_photo_is_retried_then_stood_in_for_and_named(monkeypatch):
    monkeypatch.setattr(stream, "RETRY_SECONDS", 0)
    plain = SeededDataset([0, 1, 2], Flaky(0))[1, 7]
    assert plain["photo"] == 1 and plain["unreadable"] == []
    assert SeededDataset([0, 1, 2], Flaky(2))[1, 7] == plain  # the same draws after two failures
    stand_in = SeededDataset([0, 1, 2], Flaky(3))[1, 7]
    assert stand_in["photo"] == 2 and stand_in["unreadable"] == ["photo 1 is missing"]
    with pytest.raises(ISONetError, match="no photo of the data set can be read"):
        SeededDataset([1], Flaky(99))[0, 7]


SHAPES = ["DATASETS.TRAIN", "('shapes_val',)"]


def test_presets_and_transforms_by_name():
    entries = '["default", "color", {"lsj": {"size": 64}}, {"RandomRotation": {"angle": [-9, 9]}}]'
    made = build_augmentations(small_cfg("INPUT.AUGMENTATION", entries))
    assert [type(a).__name__ for a in made] == [
        "ResizeShortestEdge", "RandomFlip", "RandomBrightness", "RandomContrast",
        "RandomSaturation", "ResizeScale", "FixedSizeCrop", "RandomFlip", "RandomRotation",
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "masks", "words"), [
    ('["jitter"]', "True", "INPUT.AUGMENTATION.*got 'jitter'"),
    ('[{"color": {"much": 1}}]', "True", "INPUT.AUGMENTATION.*unexpected keyword argument 'much'"),
    ('[{"lsj": 3}]', "True", "INPUT.AUGMENTATION.*expected a name or"),
    ("['copy_paste']", "False", "expected MODEL.MASK_ON True"),
])  # fmt: skip
def test_what_is_no_augmentation_is_one_line(value, masks, words):
    with pytest.raises(ISONetError, match=words):
        cfg = small_cfg(*SHAPES, "INPUT.AUGMENTATION", value, "MODEL.MASK_ON", masks)
        build_train_loader(cfg, 0)


def photo(height, width, value, box):
    x0, y0, x1, y1 = box
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, y0:y1, x0:x1] = True
    instances = Instances((height, width))
    instances.gt_boxes, instances.gt_masks = Boxes(torch.tensor([box]).float()), BitMasks(mask)
    instances.gt_classes = torch.tensor([value])
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    return {"image": image, "instances": instances}


def test_pasted_objects_hide_what_is_behind_them():
    # The other photo is larger: its object at x 2 to 12 ends at the photo's edge.
    result = paste(photo(8, 10, 1, [0, 0, 6, 6]), photo(9, 20, 2, [2, 0, 12, 4]), [True])
    instances = result["instances"]
    assert instances.gt_classes.tolist() == [1, 2]
    assert instances.gt_masks.tensor.sum((1, 2)).tolist() == [36 - 16, 8 * 4]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 6, 6], [2, 0, 10, 4]]
    assert (result["image"][0] == 2).sum() == 32 and (result["image"][0, :4, 2:] == 2).all()
    for chosen, expected in ((True, [2]), (False, [1])):  # hidden wholly, or nothing pasted
        result = paste(photo(8, 8, 1, [2, 2, 4, 4]), photo(8, 8, 2, [0, 0, 8, 8]), [chosen])
        assert result["instances"].gt_classes.tolist() == expected
