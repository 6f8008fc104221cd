"""Every command of the pages runs as it stands there, on small data (tests/run_small.py)."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from support import REPOSITORY, authors_state, config, environment, tool

from isonet_det import ISONet, build_model
from isonet_det.data import render_shapes

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted(REPOSITORY.glob("docs/*.md"))]


def blocks(page):
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)


def write_coco(folder, count, seed, categories, annotations, photos):
    render_shapes(folder / "drawn", count, seed)
    content = json.loads((folder / "drawn" / "annotations.json").read_text())
    pairs = zip(content["categories"], categories, strict=False)
    of = {old["id"]: new["id"] for old, new in pairs}
    kept = [a for a in content["annotations"] if a["category_id"] in of]
    content["annotations"] = [{**a, "category_id": of[a["category_id"]]} for a in kept]
    content["categories"] = categories
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
    for split, count in (("train", 6), ("val", 6)):  # the same photos
        photos = folder / "photos" / split
        content = write_coco(folder, count, 9, own, folder / f"{split}.json", photos)
    bccd = folder / "BCCD_Dataset" / "BCCD" / "JPEGImages"
    write_coco(folder, 6, 9, own, folder / "bccd_trainval.json", bccd)
    shutil.copy(folder / "bccd_trainval.json", folder / "bccd_test.json")
    photo = cv2.imread(str(next(photos.glob("*.png"))))
    cv2.imwrite(str(bccd / "BloodImage_00007.jpg"), photo)
    for name in ("one", "two"):
        cv2.imwrite(str(photos / f"{name}.jpg"), photo)
    for drawn in (folder / "photos").glob("*/*"):
        shutil.copy(drawn, folder / "photos")
    shutil.copy(folder / "train.json", folder / "all.json")
    (folder / "new_photos").mkdir()
    cv2.imwrite(str(folder / "new_photos" / "three.jpg"), photo)
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in content["annotations"]
    ]
    (folder / "results.json").write_text(json.dumps(results))
    sets = ("data/imagenet", "data/cifar10", "data/cifar10_mini", "data")
    splits, labels = ("train", "val", "test"), ("cat", "dog")
    for data, split, label in itertools.product(sets, splits, labels):
        target = folder / data / split / label
        target.mkdir(parents=True)
        for i in range(4):
            shutil.copy(photos / "one.jpg", target / f"{i}.jpg")
    cache = folder / "home" / "cache" / "isonet_det"
    cache.mkdir(parents=True)
    for name, classes in (("R-ISONet-34", 1000), ("R-ISONet-50-dropout", 2)):
        net = ISONet(int(name.split("-")[2]), num_classes=classes)
        torch.save(authors_state(net), cache / f"{name}.pth")
    render_shapes(folder / "home" / ".cache" / "isonet_det" / "shapes-v1" / "shapes_val", 2, 1)
    cfg, run = config("quickstart.yaml"), folder / "output" / "quickstart"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, run / "model_final.pth")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    shims = {
        "python": f'exec "{sys.executable}" "{REPOSITORY}/tests/run_small.py" "$@"',
        "isonet-det": f'exec "{sys.executable}" "{REPOSITORY}/tests/run_small.py" isonet-det "$@"',
        # Whether the target is there; other tests run what it does.
        "git": "true",  # what it would clone is there
        "pip": "true",
        "make": 'exec /usr/bin/env -i PATH=/usr/bin:/bin make -n "$@"',
    }
    (folder / "shims").mkdir()
    for name, line in shims.items():
        (folder / "shims" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / "shims" / name).chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_every_command_of_a_page_runs(world, page):
    environ = environment(
        PATH=f"{world}/shims:{os.environ['PATH']}", HOME=str(world / "home"),
        FVCORE_CACHE=str(world / "home" / "cache"), DETECTRON2_DATASETS=str(world / "datasets"),
    )  # fmt: skip
    environ.pop("ISONET_DET_CACHE", None)
    for block in blocks(page):
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=world, env=environ, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, f"{block}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


def test_the_program_of_the_docs_reads_pascal_voc(tmp_path):
    pytest.importorskip("supervision")
    voc = tmp_path / "BCCD_Dataset" / "BCCD"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    for number, split in enumerate(("trainval", "test")):
        cv2.imwrite(str(voc / "JPEGImages" / f"{number}.jpg"), np.zeros((48, 64, 3), np.uint8))
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{number}\n")
        box = "<xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>36</ymax>"
        (voc / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><filename>{number}.jpg</filename><size><width>64</width><height>48"
            "</height><depth>3</depth></size><object><name>cell</name>"
            f"<bndbox>{box}</bndbox></object></annotation>"
        )
    page = (REPOSITORY / "docs" / "bccd.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.S)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    for split in ("trainval", "test"):
        name = f"bccd_{split}"
        argument = f"{name}={tmp_path}/{name}.json:{voc}/JPEGImages"
        tool("check_dataset.py", "--dataset", argument, cwd=tmp_path)
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert [len(content[k]) for k in ("images", "annotations", "categories")] == [1, 1, 1]
        assert content["annotations"][0]["bbox"] == pytest.approx([4, 5, 20, 30], abs=1)
