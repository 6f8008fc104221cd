"""Class names: of training sets, test sets and checkpoints."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from support import TINY, run_tool, small_cfg

from isonet_det import ISONetError, load_weights
from isonet_det.data import check_datasets, register_from_argument, render_shapes
from isonet_det.data.register import open_set
from isonet_det.engine.resume import check_resumable
from isonet_det.train import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One drawn set under several class lists."""
    folder = tmp_path_factory.mktemp("classes") / "set"
    render_shapes(folder, 6, 4)
    content = json.loads((folder / "annotations.json").read_text())

    def write(name, change):
        changed = copy.deepcopy(content)
        change(changed)
        (folder / f"{name}.json").write_text(json.dumps(changed))
        register_from_argument(f"cl-{name}={folder}/{name}.json:{folder}/images")

    def turned(c):
        c["categories"] = [
            {"id": 10 + i, "name": k["name"]} for i, k in enumerate(c["categories"][::-1])
        ]
        for a in c["annotations"]:
            a["category_id"] = 14 - a["category_id"]

    def fewer(c):
        c["categories"] = c["categories"][1:]
        c["annotations"] = [a for a in c["annotations"] if a["category_id"] != 1]

    write("plain", lambda c: None)
    write("turned", turned)
    write("fewer", fewer)
    write("bare", lambda c: c["categories"].append({"id": 9, "name": "none"}))
    write("other", lambda c: [k.update(name=k["name"] + "s") for k in c["categories"]])
    write("unmarked", lambda c: c.pop("annotations"))
    return folder


def cfg_of(train, test=()):
    cfg = small_cfg()
    cfg.defrost()
    cfg.DATASETS.TRAIN = tuple(f"cl-{name}" for name in train)
    cfg.DATASETS.TEST = tuple(f"cl-{name}" for name in test)
    return cfg


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


def words(folder, train, test, *more):
    flags = [w for w in more if w.startswith("--")]
    options = [w for w in more if not w.startswith("--")]
    given = {o for o in options if "." in o or o == "OUTPUT_DIR"}
    tiny = [w for k, v in zip(TINY[::2], TINY[1::2], strict=True) if k not in given for w in (k, v)]
    return [
        "--config-file", "quickstart.yaml", *flags, *tiny, "SOLVER.MAX_ITER", "2",
        "DATASETS.TRAIN", f"('cl-{train}',)", "DATASETS.TEST", f"('cl-{test}',)", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(folder):
    out = folder / "run"
    main(words(folder, "plain", "plain", "OUTPUT_DIR", str(out)))
    return out


def test_a_checkpoint_has_its_classes(folder, trained):
    content = torch.load(trained / "model_final.pth", weights_only=True)
    names = MetadataCatalog.get("cl-plain").thing_classes
    assert content["classes"] == [{"id": i + 1, "name": n} for i, n in enumerate(names)]
    model = build_model(small_cfg())
    load_weights(model, str(trained / "model_final.pth"), whole=True)
    assert model.classes == content["classes"]


def evaluated(folder, trained, test, name):
    out = folder / name
    weights = str(trained / "model_final.pth")
    main(words(folder, "plain", test, "--eval-only", "MODEL.WEIGHTS", weights,
               "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "OUTPUT_DIR", str(out)))  # fmt: skip
    return json.loads((out / "inference" / "coco_instances_results.json").read_text())


def test_an_evaluation_maps_by_the_checkpoints_names(folder, trained):
    plain, turned = (evaluated(folder, trained, t, f"eval-{t}") for t in ("plain", "turned"))
    assert plain and [d["category_id"] for d in turned] == [14 - d["category_id"] for d in plain]


def test_other_classes_than_the_checkpoints_are_refused(folder, trained, capsys):
    with pytest.raises(SystemExit) as status:
        evaluated(folder, trained, "other", "eval-other")
    assert status.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "circles" in line and "the checkpoint" in line


def test_a_test_set_without_annotations_gets_results(folder, trained, capsys):
    assert evaluated(folder, trained, "unmarked", "eval-unmarked")
    assert "which AP needs" in capsys.readouterr().out


def test_the_demo_takes_the_checkpoints_labels(folder, trained):
    result = run_tool(
        "demo.py", "--config-file", "quickstart.yaml", "--weights", trained / "model_final.pth",
        "--input", folder / "images" / "000000.png", "--json", "--score", "0", "--output",
        folder / "demo", *TINY, "DATASETS.TEST", "()", "DATASETS.TRAIN", "()",
        cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads((folder / "demo" / "detections.json").read_text())
    names = MetadataCatalog.get("cl-plain").thing_classes
    assert found and all(d["category"] == names[d["category_id"] - 1] for d in found)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "another NUM_CLASSES"),
        (["MODEL.RESNETS.DEPTH", "34"], "another model"),
        (["DATASETS.TRAIN", "('cl-turned',)"], "with the classes"),
        (["MODEL.BACKBONE.FREEZE_AT", "2"], "started with MODEL.BACKBONE.FREEZE_AT 0"),
    ],
)
def test_only_the_same_run_is_resumed(folder, trained, capsys, options, word):
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    more = ["OUTPUT_DIR", str(trained), *options]
    with pytest.raises(SystemExit) as status:
        main(words(folder, "plain", "plain", "--resume", *more))
    assert status.value.code == 2
    assert word in capsys.readouterr().err.strip().splitlines()[-1]
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_momentum_of_another_shape_is_refused():
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    trainer = SimpleNamespace(optimizer=optimizer, max_iter=9, recipe={})
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    content = {"model": model.state_dict(), "trainer": {"_trainer": {"optimizer": state}}}
    check_resumable(content, "model_0.pth", model, trainer)
    state["state"][0]["momentum_buffer"] = torch.zeros(2, 2)
    with pytest.raises(ISONetError, match="momentum_buffer"):
        check_resumable(content, "model_0.pth", model, trainer)
