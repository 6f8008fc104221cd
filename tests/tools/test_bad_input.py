import json
import pickle
import shutil
import zipfile

import pytest
import torch
from support import TINY, Trap, authors_state, refuses, tool_refuses, without

from isonet_det import ISONet
from isonet_det.data import render_shapes
from isonet_det.train import main

# Config files with one thing wrong, and the words that say it.
BAD_YAML = {
    "empty.yaml": ("", "no yaml mapping"),
    "broken.yaml": ("MODEL: {RESNETS: [\n", "no plain yaml"),
    "tag.yaml": ("X: !!python/object/apply:os.mkdir ['ran']\n", "no plain yaml"),
    "cycle.yaml": ("_BASE_: cycle.yaml\n", "lead back to it"),
    "nobase.yaml": ("_BASE_: nowhere.yaml\n", "nowhere.yaml not found"),
    "section_name.yaml": ("MODEL: {RESNET: {DEPTH: 50}}\n", "did you mean MODEL.RESNETS.DEPTH?"),
    "type.yaml": ("MODEL: {RESNETS: {DEPTH: fifty}}\n", "DEPTH: expected int, got 'fifty'"),
    "version.yaml": ("VERSION: 1\n", "VERSION 1"),
    "twice.yaml": ("SEED: 1\nSEED: 2\n", "SEED stands in it twice"),
    "no_text.yaml": (b"\x00\xff\x01", "no_text.yaml"),
}
# COCO jsons with one thing wrong in the content, its images or its annotations, and those words.
BAD_JSON = {
    "no box": (lambda c, i, a: a[0].pop("bbox"), "annotations[0] has no bbox"),
    "other size": (lambda c, i, a: i[0].update(height=i[0]["height"] + 1), "the json says"),
    "missing photo": (lambda c, i, a: i[0].update(file_name="gone.png"), "gone.png is missing"),
    "no annotations": (lambda c, i, a: c.pop("annotations"), "of its 0 annotations"),
    "no categories": (lambda c, i, a: c.update(categories=[]), "no categories"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for name, (text, _) in BAD_YAML.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    render_shapes(folder / "set", 4, 1)
    whole = (folder / "set" / "annotations.json").read_text()
    for how, (spoil, _) in BAD_JSON.items():
        content = json.loads(whole)
        spoil(content, content["images"], content["annotations"])
        (folder / f"{how}.json").write_text(json.dumps(content))
    shutil.copytree(folder / "set" / "images", folder / "half")
    photo = folder / "half" / "000002.png"
    photo.write_bytes(photo.read_bytes()[:400])
    state = authors_state(ISONet(18, out_features=["res3"]))
    torch.save(state, folder / "18.pth")
    torch.save(list(state.items())[:-3], folder / "pairs.pth")
    torch.save({"model": {**state, "x": Trap("ran")}}, folder / "trap.pth")
    (folder / "trap.pkl").write_bytes(pickle.dumps({"model": {"x": Trap("ran")}}))
    (folder / "cut.pth").write_bytes((folder / "18.pth").read_bytes()[:100000])
    torch.save({"x": Trap("ran")}, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(folder / "script.pth"))
    with zipfile.ZipFile(folder / "zip.pth", "w") as archive:
        archive.writestr("run/model.pth", b"x")
    for name, text in (("empty.pth", ""), ("page.pth", "<html>Quota exceeded</html>"),
                       ("lfs.pth", "version https://git-lfs.github.com/spec/v1\n"),
                       ("FILE", "kept")):  # fmt: skip
        (folder / name).write_text(text)
    return folder


def on(json_file, photos="set/images"):
    return [
        "--dataset", f"mine-{json_file}-{photos}={json_file}:{photos}",
        "DATASETS.TRAIN", f"('mine-{json_file}-{photos}',)",
    ]  # fmt: skip


STAGES = "['res2', 'res3', 'res4', 'res5']"
FULL = ["MODEL.RESNETS.OUT_FEATURES", STAGES, "MODEL.FPN.IN_FEATURES", STAGES]
METRIC = "SOLVER.EARLY_STOPPING.METRIC"
CASES = {
    # Config files and keys.
    **{name: (["--config-file", name], named) for name, (_, named) in BAD_YAML.items()},
    "classifier": (["--config-file", "imagenet/risonet18.yaml"], "tools/pretrain.py"),
    "option key": (["MODEL.RESNETS.DEPTHS", "18"], "did you mean MODEL.RESNETS.DEPTH?"),
    "late flag": (["SOLVER.MAX_ITER", "5", "--resume", "1"], "--resume has to come before"),
    "odd options": (["SOLVER.MAX_ITER"], "no partner"),
    # Values that cannot be.
    "depth": (["MODEL.RESNETS.DEPTH", "42"], "depth is one of [18, 34, 50, 101]"),
    "dilation in FPN": ([*FULL, "MODEL.RESNETS.RES5_DILATION", "2"], "RES5_DILATION must be 1"),
    "rate": (["SOLVER.BASE_LR", "-1.0"], "learning rate"),
    "schedule": (["SOLVER.LR_SCHEDULER_NAME", "Stairs"], "Stairs"),
    "nonfinite": (["SOLVER.ON_NONFINITE", "explode"], "'explode'"),
    "batch": (["SOLVER.ACCUMULATE_STEPS", "3"], "does not divide"),
    "output": (["OUTPUT_DIR", "FILE/inside"], "FILE/inside cannot be written"),
    "gpus": (["--num-gpus", "999"], "--num-gpus 999: this machine has"),
    "tracker": (["TRACKING", "['neptune']"], "expected names among mlflow, tensorboard, wandb"),
    "no batch": (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 1 or more, not 0"),
    "seed": (["SEED", str(2**40)], "SEED is 4.29497e+09 or less"),
    "device": (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE: expected cuda, cuda:0 to cuda:0 or cpu"),
    "heads": (["MODEL.ROI_HEADS.NAME", "StandardRoiHeads"], "did you mean StandardROIHeads?"),
    "metric": (["TEST.EVAL_PERIOD", "1", METRIC, "bbox/ap"], "expected one of bbox/AP"),
    "expectation": (["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 1]]"], "tolerance"),
    "expectation of nothing": (
        ["TEST.EXPECTED_RESULTS", "[['keypoints', 'AP', 1, 1]]"], "got 'keypoints/AP'"
    ),
    # Data sets.
    **{how: (on(f"{how}.json"), named) for how, (_, named) in BAD_JSON.items()},
    "no data": (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    "near data": (["DATASETS.TRAIN", "('shapes_trian',)"], "did you mean shapes_train?"),
    "no coco": (["DATASETS.TRAIN", "('coco_2017_train',)"], "DETECTRON2_DATASETS"),
    "argument": (["--dataset", "mine"], "NAME=annotations.json:image_root"),
    "no json": (on("none.json"), "no annotation file none.json"),
    "no folder": (on("set/annotations.json", "nowhere"), "no image folder nowhere"),
    "half photo": (on("set/annotations.json", "half"), "half/000002.png does not decode"),
    # Weights.
    "no weights": (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth: there is no such file"),
    "scheme": (["MODEL.WEIGHTS", "s3://a/b"], "knows the scheme s3"),
    "zoo name": (["MODEL.WEIGHTS", "isonet://R-ISONet-51"], "did you mean R-ISONet-50?"),
    "no network": (["MODEL.WEIGHTS", "http://127.0.0.1:9/w.pth"], "cannot be reached"),
    "empty weights": (["MODEL.WEIGHTS", "empty.pth"], "empty.pth is empty"),
    "page": (["MODEL.WEIGHTS", "page.pth"], "is a web page"),
    "git lfs": (["MODEL.WEIGHTS", "lfs.pth"], "git lfs pull"),
    "TorchScript": (["MODEL.WEIGHTS", "script.pth"], "a TorchScript"),
    "zip": (["MODEL.WEIGHTS", "zip.pth"], "unpack it"),
    "cut weights": (["MODEL.WEIGHTS", "cut.pth"], "broken or cut short"),
    "pairs": (["MODEL.WEIGHTS", "pairs.pth"], "holds a list"),
    "code": (["MODEL.WEIGHTS", "trap.pth"], "could run code"),
    "code in an older file": (["MODEL.WEIGHTS", "old.pth"], "could run code"),
    "code in pkl": (["MODEL.WEIGHTS", "trap.pkl"], "could run code"),
    "BGR": (["MODEL.WEIGHTS", "18.pth", "INPUT.FORMAT", "BGR"], "was trained on RGB"),
    "nothing to evaluate on": (["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
    "nothing to evaluate": (["--eval-only"], "MODEL.WEIGHTS is empty"),
    "backbone to evaluate": (["--eval-only", "MODEL.WEIGHTS", "18.pth"], "and no detector"),
}  # fmt: skip


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_one_line_exit_status_2_and_nothing_changed(bad_files, monkeypatch, case):
    arguments, named = CASES[case]
    monkeypatch.chdir(bad_files)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    if "--config-file" not in arguments:
        arguments = ["--config-file", "quickstart.yaml", *arguments]
    if len(arguments) % 2 == 0 or "--eval-only" in arguments:
        arguments = [*arguments, *without(TINY, arguments)]
        if "OUTPUT_DIR" not in arguments:
            arguments += ["OUTPUT_DIR", "out"]
    before = snapshot(bad_files)
    assert named in refuses(main, *arguments)
    assert snapshot(bad_files) == before and not (bad_files / "ran").exists()


@pytest.mark.parametrize(("name", "words", "named"), [
    ("analyze_model.py", ["quickstart.yaml", "--height", "0"], "number from 1 up, got '0'"),
    ("benchmark.py", ["penalty", "--device", "tpu"], "--device: expected cuda"),
    ("export.py", ["quickstart.yaml", "no/b", "--format", "torchscript"], "error: no/b.json: No"),
    ("export.py", ["quickstart.yaml", "b.pt", "--weights", "w.pth"], "b.pt: expected a file.onnx"),
    ("publish_detector.py", [".", "R-ISONet-50"], "expected a new one"),
    ("compare_runs.py", ["a=b", "a=c", "--metrics", "lr", "--output", "o.png"], "label once"),
    ("compare_runs.py", ["a=b", "--metrics", "lr", "--output", "o.x"], "expected a .png"),
    ("train_net.py", ["--train", "a.json:photos"], "name a config"),
    ("demo.py", ["--run", "r", "--config-file", "quickstart.yaml", "--webcam", "0"], "of its own"),
])  # fmt: skip
def test_mistakes_with_the_other_tools(bad_files, name, words, named):
    before = snapshot(bad_files)
    assert named in tool_refuses(name, *words, cwd=bad_files)
    assert snapshot(bad_files) == before
