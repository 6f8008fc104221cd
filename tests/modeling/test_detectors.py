import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from support import authors_state, config, metrics

from isonet_det import ISONet, ISONetOptions, load_backbone, model_zoo
from isonet_det.engine.trainer import Trainer
from isonet_det.regularizer.loss import penalized_convolutions

OTHERS = [
    "faster_rcnn_risonet50_fpn", "faster_rcnn_risonet50_dc5", "faster_rcnn_risonet50_c4",
    "mask_rcnn_risonet50_c4", "mask_rcnn_risonet50_fpn", "retinanet_risonet50_fpn",
    "cascade_mask_rcnn_risonet50_fpn", "keypoint_rcnn_risonet50_fpn", "panoptic_fpn_risonet50",
    "mask_rcnn_isonet50_fpn",
]  # fmt: skip
# Of Detectron2's projects: the config, a loss of its own, and what makes it small.
CROP, MASK = ["INPUT.CROP.SIZE", "(64, 64)"], ["MODEL.ROI_MASK_HEAD.FC_DIM", 16]
PROJECTS = {
    "pointrend_risonet50_fpn": ("loss_mask_point", MASK),
    "implicit_pointrend_risonet50_fpn": ("loss_mask_point", [*MASK, "MODEL.POINT_HEAD.FC_DIM", 16]),
    "deeplab_v3_plus_risonet50": ("loss_sem_seg", CROP),
    "panoptic_deeplab_risonet50": ("loss_offset", CROP),
}
# The kinds of heads that differ most; the others are slow.
QUICK = ("mask_rcnn_risonet50_c4", "panoptic_fpn_risonet50", "deeplab_v3_plus_risonet50")
SMALL = [
    "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.BASE_LR", "0.001", "SOLVER.STEPS", "()",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "128", "DATASETS.TEST", "()",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "DATALOADER.NUM_WORKERS", "0", "SEED", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for residual in (True, False):
        net = ISONet(50, ISONetOptions(residual=residual), num_classes=10)
        torch.save(authors_state(net), folder / f"{residual}.pth")
    yield folder
    shutil.rmtree(folder)  # 190 MB


@pytest.fixture(scope="module", autouse=True)
def shapes_of_every_kind(tmp_path_factory):
    """The drawn shapes with points on them, and with their outlines as a semantic map."""
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.RandomState(0)

    def records(kind):
        for record in DatasetCatalog.get("shapes_val")[:12]:
            record = {**record, "annotations": [dict(a) for a in record["annotations"]]}
            semantic = np.zeros((record["height"], record["width"]), np.uint8)
            instance = np.zeros((record["height"], record["width"], 3), np.uint8)
            record["segments_info"] = [{"id": 0, "category_id": 0, "iscrowd": 0}]
            for number, annotation in enumerate(record["annotations"], 1):
                x, y, w, h = annotation["bbox"]
                place = np.s_[int(y) : int(y + h), int(x) : int(x + w)]
                semantic[place] = category = 1 + annotation["category_id"]
                instance[place] = (0, 0, number)  # panopticapi's id is in red, green and blue
                segment = {"id": number, "category_id": category, "iscrowd": 0}
                record["segments_info"].append(segment)
                if kind == "keypoints":
                    annotation["category_id"] = 0
                    points = rng.rand(17, 2) * [w, h] + [x, y]
                    annotation["keypoints"] = np.c_[points, np.full(17, 2)].flatten().tolist()
            for key, picture in (("sem_seg", semantic), ("pan_seg", instance)):
                record[f"{key}_file_name"] = f"{folder}/{record['image_id']}_{key}.png"
                cv2.imwrite(record[f"{key}_file_name"], picture)
            yield record

    person = MetadataCatalog.get("keypoints_coco_2017_val")
    for kind in ("keypoints", "panoptic"):
        name = f"shapes_with_{kind}"
        DatasetCatalog.register(name, lambda kind=kind: list(records(kind)))
        MetadataCatalog.get(name).set(
            evaluator_type="coco", keypoint_names=person.keypoint_names,
            keypoint_flip_map=person.keypoint_flip_map, ignore_label=255,
            thing_dataset_id_to_contiguous_id={i: i for i in range(1, 5)},
        )  # fmt: skip


def small_config(name, weights, folder, *options):
    cfg = model_zoo.get_config(f"{name}.yaml")
    data = {"keypoint": "shapes_with_keypoints", "panoptic": "shapes_with_panoptic",
            "deeplab": "shapes_with_panoptic"}.get(name.split("_")[0], "shapes_val")  # fmt: skip
    file = weights / f"{cfg.MODEL.ISONET.RESIDUAL}.pth"
    return config(f"{name}.yaml", *SMALL, "DATASETS.TRAIN", f"('{data}',)", "OUTPUT_DIR", folder,
                  "MODEL.WEIGHTS", file, *options)  # fmt: skip


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in [*OTHERS, *PROJECTS]
])  # fmt: skip
def test_every_detector_trains_and_its_backbone_moves(name, weights, tmp_path):
    if name == "panoptic_deeplab_risonet50":
        pytest.importorskip("panopticapi")
    own_loss, smaller = PROJECTS.get(name, ("total_loss", []))
    cfg = small_config(name, weights, tmp_path, *smaller, "SOLVER.MAX_ITER", "2")
    trainer = Trainer(cfg)
    trainer.checkpointer.save_to_disk = False  # up to 1.2 GB, which nobody reads
    trainer.resume_or_load(False)
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    (row,) = metrics(tmp_path)
    assert row["loss_ortho"] > 0 and np.isfinite(row["total_loss"])
    after = dict(trainer.model.named_parameters())
    moved = [n for n in before if (after[n] != before[n]).any()]
    assert any("res3.0.conv2" in n for n in moved) and any("res5." in n for n in moved)
    assert row[own_loss] > 0
    kinds = {"mask_rcnn": "mask", "keypoint": "keypoint", "panoptic_fpn": "sem_seg",
             "cascade": "cls_stage2"}  # fmt: skip
    assert all(f"loss_{kinds[kind]}" in row for kind in kinds if name.startswith(kind))


def test_a_c4_head_is_filled_and_penalized_like_the_stage_that_it_is(weights, tmp_path):
    model = build_model(small_config("mask_rcnn_risonet50_c4", weights, tmp_path))
    filled = load_backbone(model, weights / "True.pth")
    assert "roi_heads.res5.2.conv3.weight" in filled
    expected = ISONet(50)
    load_backbone(expected, weights / "True.pth")
    for name, tensor in expected.res5.state_dict().items():
        assert torch.equal(model.roi_heads.res5.state_dict()[name], tensor), name
    names = set(penalized_convolutions(model))
    assert "roi_heads.res5.0.conv2" in names and "roi_heads.mask_head.predictor" not in names
    # A trained C4 detector's backbone fits another detector.
    fpn = build_model(small_config("mask_rcnn_risonet50_fpn", weights, tmp_path))
    assert len(load_backbone(fpn, model.state_dict())) == len(expected.state_dict())
