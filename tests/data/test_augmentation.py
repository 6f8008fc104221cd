import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from support import small_cfg, take

from isonet_det import ISONetError
from isonet_det.data import check_datasets
from isonet_det.data.augmentation import build_augmentations, paste
from isonet_det.data.stream import build_train_loader

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


def test_pasted_photos_are_a_function_of_seed_and_position():
    def batches(augmentation, count, skip=0):
        cfg = check_datasets(small_cfg(*SHAPES, "INPUT.AUGMENTATION", augmentation))
        return take(build_train_loader(cfg, 5), count, skip)

    pasted = "[{'lsj': {'size': 64}}, {'copy_paste': {'probability': 1}}]"
    whole, rest = batches(pasted, 3), batches(pasted, 1, skip=2)
    for a, b in zip(whole[2], rest[0], strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)
    found, plain = (
        [d["instances"] for batch in some for d in batch]
        for some in (whole, batches("[{'lsj': {'size': 64}}]", 3))
    )
    assert sum(map(len, found)) > sum(map(len, plain))
    for instances in found:
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.equal(instances.gt_boxes.tensor, boxes)
