import csv
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from support import tool, tool_refuses, write_run
from torch import nn

from isonet_det import ISONetError, model_zoo
from isonet_det.modeling.detectron2 import build_network
from isonet_det.modeling.family import BLOCKS_PER_STAGE
from isonet_det.modeling.layers import SReLU
from isonet_det.regularizer.loss import penalized_convolutions
from isonet_det.reproduce.jobs import make_jobs, plan, run_jobs
from isonet_det.reproduce.results import markdown, write_report
from isonet_det.reproduce.runs import find_runs
from isonet_det.reproduce.tables import CELLS, IMAGENET, TABLE6
from isonet_det.weights.loader import network_of_checkpoint
from isonet_det.weights.names import parse_checkpoint
from isonet_det.weights.zoo import Record


def run_of(root, row, seed=1, options=(), ap=30.0, **extra):
    results = {f"{t}/{m}": ap for t in ("bbox", "segm") for m in ("AP", "AP50", "AP75")}
    return write_run(TABLE6, root, row, options, results=results, seed=seed, **extra)


def test_runs_of_the_recipe_stand_beside_the_papers_number(tmp_path):
    for seed, ap in ((1, 36.0), (2, 37.0), (3, 38.0)):
        run_of(tmp_path, "risonet50_dc5", seed, ap=ap)
    folder = run_of(tmp_path, "risonet34_dc5", processes=4, ap=36.5)
    small, *runs = find_runs(TABLE6, str(tmp_path))
    assert all(run.is_the_recipe for run in (small, *runs))
    assert runs[0].images_per_second == 32 and runs[0].hours == 90 and runs[0].peak_gib == 2
    text = markdown([small, *runs])
    assert "| 3 | 37.0 ± 1.0 | 37.3 | -0.3 |" in text and "not the recipe" not in text
    assert small.config.SOLVER.IMS_PER_BATCH == 8 and "| 4 x 2 x 1 |" in text
    # The same numbers of iterations on fewer GPUs, without scaling them, are not.
    (folder / "run.json").write_text(json.dumps({"processes": 2}))
    assert not find_runs(TABLE6, str(tmp_path))[0].is_the_recipe


@pytest.mark.parametrize("option", [
    ["SOLVER.MAX_ITER", "89999"], ["DATASETS.TEST", "('mine',)"],
    ["MODEL.WEIGHTS", "/some/file.pth"], ["INPUT.MIN_SIZE_TEST", "400"],
], ids=" ".join)  # fmt: skip
def test_whatever_strays_never_looks_like_the_real_one(tmp_path, option):
    run_of(tmp_path, "risonet50_dc5", options=option, ap=99.0)
    (run,) = find_runs(TABLE6, str(tmp_path))
    assert run.finished and not run.is_the_recipe and option[0] in run.strayed[0]
    text = markdown([run])
    assert "TRIAL RUN, not the recipe" in text and "say nothing about the paper's" in text
    assert "99.0 | 37.3 | - |" in text and "| the recipe |" not in text


def test_report_files(tmp_path):
    run_of(tmp_path, "resnet50_dc5")
    run_of(tmp_path, "resnet50_dc5", 2, ap=float("nan"))
    run_of(tmp_path, "risonet50_dc5", options=["SOLVER.MAX_ITER", "60"])
    run_of(tmp_path, "resnet34_dc5", done=4000)
    (tmp_path / "risonet34_dc5-seed1").mkdir()
    report, table, picture = write_report(find_runs(TABLE6, str(tmp_path)), str(tmp_path))
    text = Path(report).read_text()
    assert "nan" in text and "unfinished, 4000 of 90000 iterations" in text
    with open(table) as f:
        lines = {line["network"]: line for line in csv.DictReader(f) if line["seed"] != "2"}
    assert lines["R-ISONet-34"]["status"] == "not started"
    assert lines["ResNet-50"]["bbox/AP"] == "30.0" and not lines["ResNet-34"]["bbox/AP"]
    assert "SOLVER.MAX_ITER 60 (recipe: 90000)" in lines["R-ISONet-50"]["strayed"]
    assert Path(picture).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_jobs_cover_rows_seeds_and_the_sweep():
    sweep, amp = "MODEL.ISONET.ORTHO_COEFF=0.0,1e-5", ["SOLVER.AMP.ENABLED", "True"]
    jobs = make_jobs(TABLE6, ["risonet34_dc5"], [1, 2], "out", sweep, amp)
    names = [f"ORTHO_COEFF={value}-seed{seed}" for value in ("0.0", "1e-5") for seed in (1, 2)]
    assert [job.name for job in jobs] == [f"risonet34_dc5-{name}" for name in names]
    cfg = jobs[2].config(8)
    assert cfg.MODEL.ISONET.ORTHO_COEFF == 1e-5 and cfg.SEED == 1 and cfg.SOLVER.AMP.ENABLED
    assert len(make_jobs(TABLE6, [], [1], "out")) == 4
    for rows, sweep, named in (
        (["resnet18"], None, "no row resnet18"),
        ([], "MODEL.ISONET.ORTHO_COEFF", "KEY=VALUE"),
        ([], "MODEL.ISONET.ORTHO_COEF=1", "did you mean MODEL.ISONET.ORTHO_COEFF"),
    ):
        with pytest.raises(ISONetError, match=named):
            plan(make_jobs(TABLE6, rows, [1], "out", sweep), "local", 8)


@pytest.mark.parametrize(("launcher", "machines"), [("local", 1), ("torchrun", 2), ("slurm", 2)])
def test_plans_are_shell(launcher, machines):
    text = plan(make_jobs(TABLE6, [], [1, 2], "out"), launcher, 8, machines)
    assert text.count("isonet_det.train") == 8
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    if launcher == "slurm":
        assert "--array=0-7" in text and not re.search("@[A-Z]+@", text)


def test_a_plan_tells_the_hours_to_expect_and_three_seeds_are_the_default(tmp_path):
    """90,000 iterations of 0.471 s are 11.8 hours."""
    text = tool("table6.py", "plan", "--rows", "resnet50_dc5", "--root", "o", cwd=tmp_path)
    assert [f"resnet50_dc5-seed{seed}" in text for seed in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert "# Expected: 11.8 hours a run, 35 for the 3 one after another" in text
    assert "8 V100" in text
    # Four GPUs with two images each run twice as many iterations.
    text = tool("table6.py", "plan", "--rows", "resnet50_dc5", "--num-gpus", "4", cwd=tmp_path)
    assert "Expected: 23.6 hours" in text and "SOLVER.MAX_ITER 90000 -> 180000" in text
    assert "--num-gpus 4" in text
    text = tool("imagenet.py", "plan", "--rows", "isonet34_srelu", cwd=tmp_path)
    assert "isonet_det.pretrain" in text and "MODEL.ISONET.INIT kaiming" in text


def test_a_finished_row_is_not_run_again_nor_anothers_folder_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    run_of(tmp_path, "resnet50_dc5", options=["MODEL.DEVICE", "cpu"])
    jobs = make_jobs(TABLE6, ["resnet50_dc5"], [1, 1], str(tmp_path), None, ["MODEL.DEVICE", "cpu"])
    run_jobs(jobs, 8)
    other = make_jobs(TABLE6, ["resnet50_dc5"], [1], str(tmp_path), None, ["SOLVER.MAX_ITER", "60"])
    with pytest.raises(ISONetError, match=r"another config \(.*SOLVER\.MAX_ITER.* differ\)"):
        run_jobs(other, 8)


@pytest.mark.parametrize(("status", "queued"), [(75, True), (2, False)])
def test_the_slurm_script_queues_a_preempted_row_again(tmp_path, status, queued):
    """With stand-ins for SLURM's commands and for Python."""
    stand_ins = {
        "srun": '"$@"',
        "python": f"echo rank $SLURM_NODEID: $*; exit {status}",
        "scontrol": 'if [ "$1" = show ]; then echo node7; else echo "again: $*"; fi',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "12", "SLURM_NODEID": "1",
    }  # fmt: skip
    script = plan(make_jobs(TABLE6, [], [1], "out dir"), "slurm", 8, 2)
    result = subprocess.run(
        ["bash"], input=script, text=True, env=environment, capture_output=True, cwd=tmp_path
    )
    assert result.returncode == status and not result.stderr
    line, *more = result.stdout.splitlines()
    assert line.startswith("rank 1: -m isonet_det.train --num-gpus 8 --num-machines 2 ")
    assert "--machine-rank 1 --dist-url tcp://node7:29501 --config-file" in line
    assert "OUTPUT_DIR out dir/risonet34_dc5-seed1" in line
    assert more == (["again: requeue 12_1"] if queued else [])


def test_the_report_fills_the_records_of_finished_rows(tmp_path):
    """From the seed in the middle; trial runs and unfinished ones have none."""
    root, zoo, out = tmp_path / "table6", tmp_path / "zoo", tmp_path / "out"
    report = ["table6.py", "report", "--root", root]
    assert "run one first" in tool_refuses(*report, cwd=tmp_path)
    model = model_zoo.get("table6/risonet34_dc5.yaml", device="cpu")
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    for seed, ap in ((1, 38.0), (2, 36.0), (3, 37.0)):
        folder = run_of(root, "risonet34_dc5", seed, ap=ap)
        os.link(tmp_path / "model_final.pth", folder / "model_final.pth")
    run_of(root, "risonet50_dc5", options=["SOLVER.MAX_ITER", "60"])
    run_of(root, "resnet50_dc5", done=4000)
    where = ["--base-url", "https://example.org/detectors"]
    tool(*report, "--publish", out, "--zoo", zoo, *where, cwd=tmp_path)
    (path,) = zoo.glob("*.json")
    record = Record(**json.loads(path.read_text()))
    (weights,) = (out / record.name).glob("*.pth")
    assert record.name == "table6-risonet34_dc5" and record.network == "R-ISONet-34"
    assert record.metrics == {"bbox/AP": 37.0, "segm/AP": 37.0}
    assert record.source == f"https://example.org/detectors/{record.name}/{weights.name}"
    assert "| bbox/AP | 37.00 ± 1.00 | 3 |" in (out / record.name / "README.md").read_text()


def test_a_table_that_is_not_the_papers_compares_with_nothing(tmp_path):
    for row, ap in (("risonet18", 50.0), ("resnet18_dc5", 40.0)):
        write_run(CELLS, tmp_path, row, results={"bbox/AP": ap, "bbox/AP-WBC": ap + 9}, processes=1)
    text = Path(write_report(find_runs(CELLS, str(tmp_path)), str(tmp_path))[0]).read_text()
    assert "| R-ISONet-18 | the recipe | 1 | 50.0 | - | 59.0 |" in text
    assert "paper" not in text and (tmp_path / "report.png").stat().st_size
    assert "cells/resnet_dc5.yaml" in plan(make_jobs(CELLS, [], [1], "out"), "local", CELLS.gpus)


def test_micro_batches_that_a_row_names_are_not_free(tmp_path):
    for seed, options in enumerate(((), ("SOLVER.ACCUMULATE_STEPS", "1"))):
        write_run(CELLS, tmp_path, "risonet18_by1", options, results={}, seed=seed, processes=1)
    assert [len(run.strayed) for run in find_runs(CELLS, str(tmp_path))] == [0, 1]


# Paper, Tables 4 and 5, and the ablations of Tables 1, 2, 3 and 7 at 34 layers: skip connections,
# normalization, SReLU, Delta, gamma, dropout.
KINDS = {
    "resnet{}": (True, True, False, False, 0, 0),
    "resnet{}_dropout": (True, True, False, False, 0, 0.4),
    "vanilla{}": (False, False, False, False, 0, 0),
    "vanilla{}_bn": (False, True, False, False, 0, 0),
    "isonet{}_nodropout": (False, False, True, True, 1e-4, 0),
    "isonet{}": (False, False, True, True, 1e-4, 0.1),
    "resnet{}_nobn": (True, False, False, False, 0, 0),
    "risonet{}_nodropout": (True, False, True, True, 1e-4, 0),
    "risonet{}": (True, False, True, True, 1e-4, 0.4),
}
ABLATIONS = {
    "isonet34_delta_ortho": (False, False, False, True, 1e-4, 0),
    "isonet34_srelu": (False, False, True, False, 0, 0),
    "isonet34_srelu_ortho": (False, False, True, False, 1e-4, 0),
    "isonet34_srelu_delta": (False, False, True, True, 0, 0),
    "isonet34_gamma1e-5": (False, False, True, True, 1e-5, 0),
    "isonet34_gamma3e-5": (False, False, True, True, 3e-5, 0),
    "isonet34_gamma3e-4": (False, False, True, True, 3e-4, 0),
    "isonet34_b_fixed": (False, False, True, True, 1e-4, 0),
    "isonet34_b_from-2": (False, False, True, True, 1e-4, 0),
    "resnet34_srelu": (True, True, True, False, 0, 0),
    "resnet34_delta": (True, True, False, True, 0, 0),
    "resnet34_ortho": (True, True, False, False, 1e-4, 0),
    "resnet34_all": (True, True, True, True, 1e-4, 0),
}
EXPECTED = {
    **{n.format(d): (d, *kind) for n, kind in KINDS.items() for d in BLOCKS_PER_STAGE},
    **{name: (34, *kind) for name, kind in ABLATIONS.items()},
}


def test_the_rows_of_table_5_are_its_authors_recipe():
    paper = {"": (68.63, 71.28, 72.40, 73.18), "_mixup": (67.37, 72.56, 76.00, 76.17)}
    for kind, numbers in paper.items():
        for depth, top1 in zip(BLOCKS_PER_STAGE, numbers, strict=True):
            row = IMAGENET.rows[f"fixup{depth}{kind}"]
            cfg = IMAGENET.recipe(row)
            assert row.paper == (top1,) and cfg.MODEL.RESNETS.DEPTH == depth
            assert (cfg.PRETRAIN.MIXUP, cfg.PRETRAIN.DROPOUT) == (0.7 if kind else 0, 0)
            assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR) == (0, 0.1)
            assert (cfg.MODEL.ISONET.FAMILY, cfg.MODEL.ISONET.ORTHO_COEFF) == ("fixup", 0)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_is_the_papers_network(name):
    depth, skips, norm, srelu, delta, gamma, dropout = EXPECTED[name]
    if name.startswith("isonet101"):
        gamma = 3e-4  # the paper's, for this network alone
    cfg = IMAGENET.recipe(IMAGENET.rows[name])
    with torch.device("meta"):
        net = build_network(cfg, num_classes=1000, dropout=cfg.PRETRAIN.DROPOUT)
    assert net.depth == depth and net.dropout.p == dropout
    assert cfg.MODEL.ISONET.ORTHO_COEFF == pytest.approx(gamma)
    kinds = [type(m) for m in net.modules()]
    assert (SReLU in kinds) == srelu and (nn.ReLU in kinds) == (not srelu)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert kinds.count(nn.BatchNorm2d) == (len(convs) if norm else 0)
    # A bias where nothing else shifts, as in the authors' code.
    assert {c.bias is not None for c in convs} == {not (srelu or norm)}
    names = dict(net.named_parameters())
    assert any(".shortcut." in n for n in names) == skips
    scalars = [n for n in names if n.endswith("res_multiplier")]
    assert len(scalars) == (sum(BLOCKS_PER_STAGE[depth]) if "risonet" in name else 0)
    assert (net.options.init == "delta") == delta
    assert not gamma or len(penalized_convolutions(net)) == len(convs) - 1
    biases = [m.srelu_bias for m in net.modules() if isinstance(m, SReLU)]
    assert all(b.requires_grad == (name != "isonet34_b_fixed") for b in biases)
    assert net.options.srelu_bias == (-2 if name == "isonet34_b_from-2" else -1)
    # The recipe.
    solver, epoch = cfg.SOLVER, 1281167 // 256
    rate = 0.1 if skips or norm else 0.02
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.MOMENTUM) == (rate, 256, 0.9)
    assert solver.WEIGHT_DECAY == solver.WEIGHT_DECAY_NORM == 1e-4
    schedule = (solver.MAX_ITER, solver.WARMUP_ITERS, *solver.STEPS)
    assert schedule == tuple(n * epoch for n in (100, 5, 30, 60, 90))
    assert not solver.NESTEROV and not solver.CLIP_GRADIENTS.ENABLED


@pytest.mark.parametrize(
    "name", ["resnet18", "vanilla18_bn", "resnet18_nobn", "risonet18", "isonet34_srelu"]
)
def test_a_rows_checkpoint_is_told_by_its_content(name):
    """So analyze_isometry.py and convert_weights.py take it without a config."""
    net = build_network(IMAGENET.recipe(IMAGENET.rows[name]), num_classes=2, out_features=["res5"])
    # The authors' initial scales: 0 at the end of a residual branch, else 1.
    scales = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(not s.any() for s in scales) == (8 if name == "resnet18" else 0)
    assert all((s == 1).all() for s in scales if s.any())
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    found = network_of_checkpoint(parse_checkpoint(net.state_dict())).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(found(x)["res5"], net.eval()(x)["res5"], rtol=1e-4, atol=1e-5)


def test_the_zoo_agrees_with_the_table():
    for record in model_zoo.records().values():
        if "ISONet" in record.network:
            name = record.name.lower().replace("-", "").removesuffix("dropout")
            row = IMAGENET.rows[name if record.dropout else f"{name}_nodropout"]
            assert row.paper == (record.top1,)


def test_report(tmp_path):
    for name, options, top1 in (
        ("risonet50", ["PRETRAIN.ROOT", "/data", "DATALOADER.NUM_WORKERS", "2"], 70.0),
        ("risonet50_nodropout", ["PRETRAIN.EPOCHS", "10"], 70.0),
        ("vanilla50", [], 1.0),
    ):
        results = {"classification/top1": top1, "classification/top5": 90.0}
        write_run(IMAGENET, tmp_path, name, options, results=results)
    report, *others = write_report(find_runs(IMAGENET, str(tmp_path)), str(tmp_path))
    text = Path(report).read_text()
    for words in (
        "2 of 57 rows are done",
        "| R-ISONet-50, dropout | the recipe | 1 | 70.00 | 76.18 | -6.18 | 90.00 |",
        "| R-ISONet-50 | TRIAL RUN, not the recipe | 1 | 70.00 | 74.20 | - | 90.00 |",
        "| vanilla, 50 layers | the recipe | 1 | 1.00 | did not converge | - | 90.00 |",
    ):
        assert words in text
    assert all(Path(path).stat().st_size > 0 for path in others)
