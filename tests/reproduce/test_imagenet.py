from pathlib import Path

import pytest
import torch
from support import tool, write_run
from torch import nn

from isonet_det import model_zoo
from isonet_det.modeling.detectron2 import build_network
from isonet_det.modeling.family import BLOCKS_PER_STAGE
from isonet_det.modeling.layers import SReLU
from isonet_det.regularizer.loss import penalized_convolutions
from isonet_det.reproduce.results import write_report
from isonet_det.reproduce.runs import find_runs
from isonet_det.reproduce.tables import IMAGENET
from isonet_det.weights.loader import network_of_checkpoint
from isonet_det.weights.names import parse_checkpoint

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


def test_norm_initialization_is_the_authors():
    """Scale 0 at the end of a residual branch, else 1."""
    for name, zeros in (("resnet50", 16), ("vanilla34_bn", 0)):
        net = build_network(IMAGENET.recipe(IMAGENET.rows[name]), num_classes=2)
        scales = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert sum(not s.any() for s in scales) == zeros
        assert all((s == 1).all() for s in scales if s.any())


@pytest.mark.parametrize(
    "name", ["resnet18", "vanilla18_bn", "resnet18_nobn", "risonet18", "isonet34_srelu"]
)
def test_a_rows_checkpoint_is_told_by_its_content(name):
    """So analyze_isometry.py and convert_weights.py take it without a config."""
    net = build_network(IMAGENET.recipe(IMAGENET.rows[name]), num_classes=2, out_features=["res5"])
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


def test_a_plan_needs_no_data(tmp_path):
    text = tool("imagenet.py", "plan", "--rows", "isonet34_srelu", cwd=tmp_path)
    assert "isonet_det.pretrain" in text and "MODEL.ISONET.INIT kaiming" in text
