"""What people get wrong: one line that names it, exit status 2, and no file changed."""

import json
import pickle
import shutil

import pytest
import torch
from support import BAD_YAML, TINY, Trap, authors_state, run_tool, spoil

from isonet_det import ISONet, ISONetOptions
from isonet_det.data import render_shapes
from isonet_det.train import main

JSONS = [
    "unknown category", "unknown image", "same image id", "same annotation id", "short box",
    "nan box", "mask size", "mask word", "height word", "other size", "no file name",
    "no annotations", "no categories", "id list", "missing photo",
]  # fmt: skip


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A folder of all the files that the cases name."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (text, _) in BAD_YAML.items():
        (folder / name).write_text(text)
    (folder / "no_text.yaml").write_bytes(b"\x00\xff\x01")
    render_shapes(folder / "set", 4, 1)
    whole = (folder / "set" / "annotations.json").read_text()
    for how in JSONS:
        (folder / f"{how}.json").write_text(json.dumps(spoil(json.loads(whole), how)))
    (folder / "cut.json").write_text(whole[: len(whole) // 2])
    (folder / "word.json").write_text("hello")
    (folder / "list.json").write_text(f"[{whole}]")
    for name, content in (("text", b"no photo"), ("half", None)):
        shutil.copytree(folder / "set" / "images", folder / name)
        photo = folder / name / "000002.png"
        photo.write_bytes(content or photo.read_bytes()[:400])
    stages = {"out_features": ["res3"]}
    state = authors_state(ISONet(18, **stages))
    torch.save(state, folder / "18.pth")
    torch.save(authors_state(ISONet(34, **stages)), folder / "34.pth")
    plain = ISONet(18, ISONetOptions(residual=False), **stages)
    torch.save(authors_state(plain), folder / "plain.pth")
    torch.save(list(state.items())[:-3], folder / "pairs.pth")
    torch.save(dict(list(state.items())[:-3]), folder / "fewer.pth")
    torch.save({"model": {**state, "x": Trap("ran")}}, folder / "trap.pth")
    (folder / "trap.pkl").write_bytes(pickle.dumps({"model": {"x": Trap("ran")}}))
    (folder / "cut.pth").write_bytes((folder / "18.pth").read_bytes()[:100000])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "page.pth").write_text("<html>Quota exceeded</html>")
    (folder / "text.pth").write_text("hello")
    (folder / "FILE").write_text("kept")
    return folder


def on(json_file, photos="set/images"):
    return [
        "--dataset", f"mine-{json_file}-{photos}={json_file}:{photos}",
        "DATASETS.TRAIN", f"('mine-{json_file}-{photos}',)",
    ]  # fmt: skip


STAGES = "['res2', 'res3', 'res4', 'res5']"
FULL = ["MODEL.RESNETS.OUT_FEATURES", STAGES, "MODEL.FPN.IN_FEATURES", STAGES]
CASES = {
    # Config files and keys.
    "no config": (["--config-file", "none.yaml"], "none.yaml not found"),
    "near config": (["--config-file", "quickstart.yml"], "ready config quickstart.yaml"),
    "folder as config": (["--config-file", "set"], "set not found"),
    "empty config": (["--config-file", "empty.yaml"], "no yaml mapping"),
    "list config": (["--config-file", "list.yaml"], "no yaml mapping"),
    "broken config": (["--config-file", "broken.yaml"], "no plain yaml"),
    "config with code": (["--config-file", "tag.yaml"], "no plain yaml"),
    "circular config": (["--config-file", "cycle.yaml"], "lead back to it"),
    "classifier": (["--config-file", "imagenet/risonet18.yaml"], "tools/pretrain.py"),
    "no base": (["--config-file", "nobase.yaml"], "nowhere.yaml not found"),
    "unknown key": (["--config-file", "unknown.yaml"], "did you mean MODEL.ISONET.RESIDUAL?"),
    "wrong type": (["--config-file", "type.yaml"], "DEPTH: expected int, got 'fifty'"),
    "section": (["--config-file", "section.yaml"], "MODEL is a section"),
    "number keys": (["--config-file", "number.yaml"], "there is no config key 5.6"),
    "binary config": (["--config-file", "no_text.yaml"], "no_text.yaml"),
    "option key": (["MODEL.RESNETS.DEPTHS", "18"], "did you mean MODEL.RESNETS.DEPTH?"),
    "option type": (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER: expected int, got 'many'"),
    "late flag": (["SOLVER.MAX_ITER", "5", "--resume", "1"], "--resume has to come before"),
    "odd options": (["SOLVER.MAX_ITER"], "no partner"),
    # Values that cannot be.
    "depth": (["MODEL.RESNETS.DEPTH", "42"], "MODEL.RESNETS.DEPTH is one of [18, 34, 50, 101]"),
    "dilation": (["MODEL.RESNETS.RES5_DILATION", "3"], "RES5_DILATION 1, 2 or 4"),
    "dilation in FPN": ([*FULL, "MODEL.RESNETS.RES5_DILATION", "2"], "RES5_DILATION must be 1"),
    "dilation of what is not built": (["MODEL.RESNETS.RES5_DILATION", "2"], "without res5"),
    "freeze": (["MODEL.BACKBONE.FREEZE_AT", "9"], "FREEZE_AT is 0"),
    "features": (["MODEL.RESNETS.OUT_FEATURES", "['res9']"], "OUT_FEATURES"),
    "activation": (["MODEL.ISONET.ACTIVATION", "gelu"], "'gelu'"),
    "init": (["MODEL.ISONET.INIT", "magic"], "'magic'"),
    "gram stride": (["MODEL.ISONET.ORTHO_STRIDE", "3"], "ORTHO_STRIDE"),
    "backbone": (["MODEL.BACKBONE.NAME", "build_unknown"], "build_unknown"),
    "architecture": (["MODEL.META_ARCHITECTURE", "Nothing"], "Nothing"),
    "groups": (["MODEL.RESNETS.NUM_GROUPS", "32"], "NUM_GROUPS of an ISONet is 1"),
    "rate": (["SOLVER.BASE_LR", "-1.0"], "learning rate"),
    "schedule": (["SOLVER.LR_SCHEDULER_NAME", "Stairs"], "Stairs"),
    "nonfinite": (["SOLVER.ON_NONFINITE", "explode"], "'explode'"),
    "amp type": (["SOLVER.AMP.DTYPE", "float8"], "'float8'"),
    "stages": (["MODEL.ISONET.CHECKPOINT_STAGES", "('res6',)"], "CHECKPOINT_STAGES are some"),
    "accumulate": (["SOLVER.ACCUMULATE_STEPS", "0"], "ACCUMULATE_STEPS is 1 or more"),
    "batch": (["SOLVER.ACCUMULATE_STEPS", "3"], "does not divide"),
    "output": (["OUTPUT_DIR", "FILE/inside"], "FILE/inside cannot be written"),
    "gpus": (["--num-gpus", "999"], "--num-gpus 999: this machine has"),
    "no gpus": (["--num-gpus", "0"], "--num-gpus 0"),
    "rank": (["--machine-rank", "1"], "--machine-rank 1 of --num-machines 1"),
    "no machines": (["--num-machines", "0"], "--num-machines 0"),
    # Data sets.
    "no data": (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    "near data": (["DATASETS.TRAIN", "('shapes_trian',)"], "did you mean shapes_train?"),
    "no coco": (["DATASETS.TRAIN", "('coco_2017_train',)"], "DETECTRON2_DATASETS"),
    "no test data": (["DATASETS.TEST", "('coco_2017_val',)"], "instances_val2017.json"),
    "argument": (["--dataset", "mine"], "NAME=annotations.json:image_root"),
    "few classes": (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "has 4 classes"),
    "no json": (on("none.json"), "no annotation file none.json"),
    "no folder": (on("set/annotations.json", "nowhere"), "no image folder nowhere"),
    "cut json": (on("cut.json"), "cut.json is no json"),
    "word json": (on("word.json"), "word.json is no json"),
    "list json": (on("list.json"), 'no list "images"'),
    "unknown category": (on("unknown category.json"), "annotation 3: 77"),
    "unknown image": (on("unknown image.json"), "annotation 3: 77"),
    "same image id": (on("same image id.json"), "duplicate image id: 1"),
    "same annotation id": (on("same annotation id.json"), "duplicate annotation id: 1"),
    "short box": (on("short box.json"), "annotation 1: [1, 2]"),
    "nan box": (on("nan box.json"), "annotation 1: [1, 2, nan, 4]"),
    "mask size": (on("mask size.json"), "mask (RLE) of another size"),
    "mask word": (on("mask word.json"), "neither polygons nor RLE"),
    "height word": (on("height word.json"), "'tall'"),
    "other size": (on("other size.json"), "the json says"),
    "no file name": (on("no file name.json"), "images[2] has no file_name"),
    "no annotations": (on("no annotations.json"), 'no list "annotations"'),
    "no categories": (on("no categories.json"), "no categories"),
    "id list": (on("id list.json"), "[[1], 1,"),
    "missing photo": (on("missing photo.json"), "gone.png is missing"),
    "text photo": (on("set/annotations.json", "text"), "text/000002.png does not decode"),
    "half photo": (on("set/annotations.json", "half"), "half/000002.png does not decode"),
    # Weights.
    "no weights": (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth: there is no such file"),
    "scheme": (["MODEL.WEIGHTS", "s3://a/b"], "knows the scheme s3"),
    "zoo name": (["MODEL.WEIGHTS", "isonet://R-ISONet-51"], "did you mean R-ISONet-50?"),
    "no network": (["MODEL.WEIGHTS", "http://127.0.0.1:9/w.pth"], "cannot be reached"),
    "empty weights": (["MODEL.WEIGHTS", "empty.pth"], "empty.pth is empty"),
    "page": (["MODEL.WEIGHTS", "page.pth"], "is a web page"),
    "text weights": (["MODEL.WEIGHTS", "text.pth"], "no weight file"),
    "cut weights": (["MODEL.WEIGHTS", "cut.pth"], "broken or cut short"),
    "pairs": (["MODEL.WEIGHTS", "pairs.pth"], "holds a list"),
    "code": (["MODEL.WEIGHTS", "trap.pth"], "could run code"),
    "code in pkl": (["MODEL.WEIGHTS", "trap.pkl"], "could run code"),
    "other depth": (["MODEL.WEIGHTS", "34.pth"], "R-ISONet-34, the config asks for R-ISONet-18"),
    "other kind": (["MODEL.WEIGHTS", "plain.pth"], "is ISONet-18, the config asks for R-ISONet-18"),
    "fewer names": (["MODEL.WEIGHTS", "fewer.pth"], "missing names: 3, first res3.1."),
    "BGR": (["MODEL.WEIGHTS", "18.pth", "INPUT.FORMAT", "BGR"], "was trained on RGB"),
    "std": (["MODEL.WEIGHTS", "18.pth", "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], "std"),
    "nothing to evaluate": (["--eval-only"], "MODEL.WEIGHTS is empty"),
    "backbone to evaluate": (["--eval-only", "MODEL.WEIGHTS", "18.pth"], "and no detector"),
}  # fmt: skip


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_one_line_exit_status_2_and_nothing_changed(bad_files, monkeypatch, capsys, case):
    arguments, named = CASES[case]
    arguments = list(arguments)
    monkeypatch.chdir(bad_files)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    if "--config-file" not in arguments:
        arguments = ["--config-file", "quickstart.yaml", *arguments]
    if len(arguments) % 2 == 0 or "--eval-only" in arguments:
        arguments += [w for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] not in
                      arguments for w in pair]  # fmt: skip
        if "OUTPUT_DIR" not in arguments:
            arguments += ["OUTPUT_DIR", "out"]
    before = snapshot(bad_files)
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and named in lines[-1], lines
    assert not any("Traceback" in line for line in lines)
    assert snapshot(bad_files) == before and not (bad_files / "ran").exists()


def test_there_are_enough_of_them():
    assert len(CASES) >= 40


@pytest.mark.parametrize(
    ("tool", "words", "named"),
    [
        ("analyze_model.py", ["quickstart.yaml", "--height", "0"], "number from 1 up, got '0'"),
        ("benchmark.py", ["penalty", "--device", "tpu"], "--device tpu cannot be used"),
        ("check_dataset.py", ["x", "--workers", "two"], "number from 1 up, got 'two'"),
        ("export.py", ["quickstart.yaml", "no/b", "--format", "torchscript"], "error: no/b: No"),
        ("table6.py", ["plan", "--num-gpus", "0"], "number from 1 up, got '0'"),
        ("visualize_data.py", ["--count", "-1"], "number from 1 up, got '-1'"),
    ],
)
def test_mistakes_with_the_other_tools(bad_files, tool, words, named):
    before = snapshot(bad_files)
    result = run_tool(tool, *words, cwd=bad_files)
    assert result.returncode == 2 and named in result.stderr.splitlines()[-1], result.stderr
    assert snapshot(bad_files) == before
