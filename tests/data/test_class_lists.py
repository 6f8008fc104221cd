import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import Visualizer
from support import TINY, predictions, refuses, small_cfg, tool, without
from torch import nn

from isonet_det import ISONetError
from isonet_det.analysis.pictures import draw_predictions
from isonet_det.data import check_datasets, register_from_argument, render_shapes
from isonet_det.data.register import open_set
from isonet_det.train import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes") / "set"
    render_shapes(folder, 6, 4)
    content = json.loads((folder / "annotations.json").read_text())

    def turned(c):
        names = [k["name"] for k in c["categories"][::-1]]
        c["categories"] = [{"id": 10 + i, "name": name} for i, name in enumerate(names)]
        for a in c["annotations"]:
            a["category_id"] = 14 - a["category_id"]

    def fewer(c):
        c["categories"] = c["categories"][1:]
        c["annotations"] = [a for a in c["annotations"] if a["category_id"] != 1]

    changes = {
        "plain": lambda c: None,
        "turned": turned,
        "fewer": fewer,
        "bare": lambda c: c["categories"].append({"id": 9, "name": "none"}),
        "other": lambda c: [k.update(name=k["name"] + "s") for k in c["categories"]],
        "unmarked": lambda c: c.pop("annotations"),
    }
    for name, change in changes.items():
        changed = copy.deepcopy(content)
        change(changed)
        (folder / f"{name}.json").write_text(json.dumps(changed))
        register_from_argument(f"cl-{name}={folder}/{name}.json:{folder}/images")
    return folder


def cfg_of(train, test=()):
    train, test = (str(tuple(f"cl-{name}" for name in names)) for names in (train, test))
    return small_cfg("DATASETS.TRAIN", train, "DATASETS.TEST", test)


@pytest.mark.parametrize("name", ["turned", "fewer", "bare"])
def test_the_same_names_are_the_same_classes(folder, name):
    check_datasets(cfg_of(["plain", name], [name]))
    names = MetadataCatalog.get("cl-plain").thing_classes
    drawn = {r["image_id"]: r for r in DatasetCatalog.get("cl-plain")}
    for record in DatasetCatalog.get(f"cl-{name}"):
        expected = [names[a["category_id"]] for a in drawn[record["image_id"]]["annotations"]]
        if name == "fewer" and len(record["annotations"]) < len(expected):
            expected = [n for n in expected if n != "circle"]
        assert [names[a["category_id"]] for a in record["annotations"]] == expected


@pytest.mark.parametrize(("train", "test"), [(["plain", "other"], []), (["plain"], ["other"])])
def test_other_names_are_refused_with_the_difference(folder, train, test):
    with pytest.raises(ISONetError, match=r"cl-other.*circles.*cl-plain.*circle"):
        check_datasets(cfg_of(train, test))
    with pytest.raises(ISONetError, match="circles"):
        open_set("cl-other", open_set("cl-plain").class_names, "the checkpoint")


class Perfect(nn.Module):
    """Predicts what is annotated."""

    def forward(self, batch):
        records = {r["image_id"]: r for r in DatasetCatalog.get("cl-turned")}
        ((_, output),) = predictions([records[batch[0]["image_id"]]])
        output["instances"].scores[:] = 1
        return [output]


def test_a_picture_names_both_sides_in_the_models_order(folder, tmp_path, monkeypatch):
    cfg = cfg_of(["plain"], ["turned"])
    check_datasets(cfg)
    drawn, draw = [], Visualizer.draw_text
    monkeypatch.setattr(
        Visualizer, "draw_text", lambda *args, **kw: drawn.append(args[1]) or draw(*args, **kw)
    )
    draw_predictions(cfg, Perfect(), str(tmp_path), count=1)
    plain = json.loads((folder / "plain.json").read_text())
    names = {c["id"]: c["name"] for c in plain["categories"]}
    photo = min(image["id"] for image in plain["images"])
    true = [names[a["category_id"]] for a in plain["annotations"] if a["image_id"] == photo]
    assert true and sorted(text.split()[0] for text in drawn) == sorted(2 * true)


def words(train, test, *more):
    """A command's words: the flags among ``more``, then the keys; theirs win."""
    flags, options = ([w for w in more if w.startswith("--") == flag] for flag in (True, False))
    return [
        "--config-file", "quickstart.yaml", *flags, *without(TINY, options), "SOLVER.MAX_ITER", "2",
        "DATASETS.TRAIN", f"('cl-{train}',)", "DATASETS.TEST", f"('cl-{test}',)", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder):
    main(words("plain", "plain", "OUTPUT_DIR", str(folder / "run")))
    return folder / "run"


def evaluated(folder, trained, test):
    main(words(
        "plain", test, "--eval-only", "MODEL.WEIGHTS", str(trained / "model_final.pth"),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "OUTPUT_DIR", str(folder / f"eval-{test}"),
    ))  # fmt: skip
    path = folder / f"eval-{test}" / "inference" / "coco_instances_results.json"
    return json.loads(path.read_text())


def test_an_evaluation_maps_by_the_checkpoints_names(folder, trained, capsys):
    plain, turned = (evaluated(folder, trained, test) for test in ("plain", "turned"))
    assert plain and [d["category_id"] for d in turned] == [14 - d["category_id"] for d in plain]
    assert evaluated(folder, trained, "unmarked")  # results, and no AP
    assert "which AP needs" in capsys.readouterr().out


def test_the_demo_takes_the_checkpoints_labels(folder, trained):
    tool(
        "demo.py", "--config-file", "quickstart.yaml", "--weights", trained / "model_final.pth",
        "--input", folder / "images" / "000000.png", "--json", "--score", "0", "--output",
        "demo", *TINY, "DATASETS.TEST", "()", "DATASETS.TRAIN", "()", cwd=folder,
    )  # fmt: skip
    found = json.loads((folder / "demo" / "detections.json").read_text())
    names = MetadataCatalog.get("cl-plain").thing_classes
    assert found and all(d["category"] == names[d["category_id"] - 1] for d in found)


@pytest.mark.parametrize(("options", "word"), [
    (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "NUM_CLASSES 4, this config has 80"),
    (["DATASETS.TRAIN", "('cl-turned',)"], "with the classes"),
    (["MODEL.BACKBONE.FREEZE_AT", "2"], "started with MODEL.BACKBONE.FREEZE_AT 0"),
    (["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"], "2 iterations, more than SOLVER.MAX_ITER 1"),
])  # fmt: skip
def test_only_the_same_run_is_resumed(trained, options, word):
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    more = ["--resume", "OUTPUT_DIR", str(trained), *options]
    assert word in refuses(main, *words("plain", "plain", *more))
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before
