"""Every command of the pages runs as it stands there, on small data (tests/run_small.py)."""

import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from support import REPOSITORY, authors_state

from isonet_det import ISONet, build_model, model_zoo
from isonet_det.data import render_shapes

PAGES = [
    REPOSITORY / name
    for name in (
        "README.md", "CONTRIBUTING.md",
        *(f"docs/{page}.md" for page in (
            "index", "coco", "data", "training", "detectors", "weights", "deployment",
            "reliability", "table6", "pretraining", "regularizer", "performance", "network",
            "reproduction",
        )),
    )
]  # fmt: skip


def blocks(page):
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)


def write_coco(folder, count, seed, categories, annotations, photos):
    """Drawn shapes as a COCO json with these categories (id and name of each)."""
    render_shapes(folder / "drawn", count, seed)
    content = json.loads((folder / "drawn" / "annotations.json").read_text())
    ids = [c["id"] for c in content["categories"]]
    of = {old: new["id"] for old, new in zip(ids, categories, strict=False)}
    content["categories"] = categories
    content["annotations"] = [
        {**a, "category_id": of[a["category_id"]]}
        for a in content["annotations"]
        if a["category_id"] in of
    ]
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(content))
    photos.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder / "drawn" / "images", photos)
    shutil.rmtree(folder / "drawn")
    return content


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A clone's folder as a reader of the pages has it: data, weights, an environment."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("tools", "configs", "Makefile", "constraints", "setup.py", "notebooks"):
        (folder / name).symlink_to(REPOSITORY / name)
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    coco = folder / "datasets" / "coco"
    for split, count in (("train2017", 6), ("val2017", 2)):
        path = coco / "annotations" / f"instances_{split}.json"
        write_coco(folder, count, count, things, path, coco / split)
    own = [{"id": i, "name": name} for i, name in enumerate(("bolt", "nut", "screw"))]
    for split, count in (("train", 6), ("val", 3)):
        photos = folder / "photos" / split
        content = write_coco(folder, count, 9, own, folder / f"{split}.json", photos)
    for name in ("one", "two"):
        cv2.imwrite(str(folder / "photos" / "val" / f"{name}.jpg"), cv2.imread(str(next(
            (folder / "photos" / "val").glob("*.png")))))  # fmt: skip
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in content["annotations"]
    ]
    (folder / "results.json").write_text(json.dumps(results))
    for data in ("data/imagenet", "data/cifar10_mini", "data"):
        for split in ("train", "val"):
            for label in ("cat", "dog"):
                target = folder / data / split / label
                target.mkdir(parents=True)
                for i in range(4):
                    shutil.copy(folder / "photos" / "val" / "one.jpg", target / f"{i}.jpg")
    cache = folder / "home" / "cache" / "isonet_det"
    cache.mkdir(parents=True)
    for name, classes in (("R-ISONet-34", 1000), ("R-ISONet-50-dropout", 2)):
        net = ISONet(int(name.split("-")[2]), num_classes=classes)
        torch.save(authors_state(net), cache / f"{name}.pth")
    render_shapes(folder / "home" / ".cache" / "isonet_det" / "shapes-v1" / "shapes_val", 2, 1)
    cfg = model_zoo.get_config("quickstart.yaml")
    cfg.MODEL.DEVICE = "cpu"
    (folder / "output" / "quickstart").mkdir(parents=True)
    (folder / "output" / "quickstart" / "config.yaml").write_text(cfg.dump())
    torch.save(
        {"model": build_model(cfg).state_dict()}, folder / "output/quickstart/model_final.pth"
    )
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    shims = folder / "shims"
    shims.mkdir()
    (shims / "python").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{REPOSITORY}/tests/run_small.py" "$@"\n'
    )
    # Whether the target is there; other tests run what it does.
    (shims / "make").write_text('#!/bin/sh\nexec /usr/bin/env -i PATH=/usr/bin:/bin make -n "$@"\n')
    for shim in shims.iterdir():
        shim.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_every_command_of_a_page_runs(world, page):
    environment = {
        **os.environ,
        "PATH": f"{world}/shims:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(world / "home"),
        "FVCORE_CACHE": str(world / "home" / "cache"),
        "DETECTRON2_DATASETS": str(world / "datasets"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("ISONET_DET_CACHE", None)
    for block in blocks(page):
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=world, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, f"{block}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


def test_every_page_with_commands_is_in_the_list():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    assert {p for p in pages if blocks(p)} <= set(PAGES)
