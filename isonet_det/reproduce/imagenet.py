"""Tables 1 to 5 and 7 of the paper: ImageNet, top-1."""

from ..engine.pretrainer import PretrainTrainer
from .table import FREE_KEYS, Row, Section, Table

DEPTHS = (18, 34, 50, 101)
_NO_DROPOUT = ("PRETRAIN.DROPOUT", "0.0")


def _by_depth(
    name: str,
    network: str,
    config: str,
    paper: tuple[float | None, ...],
    options: tuple[str, ...] = (),
) -> list[Row]:
    """A line of Tables 4 and 5; a config without {depth} takes it as a key."""
    rows = []
    for depth, top1 in zip(DEPTHS, paper, strict=True):
        words = options if "{depth}" in config else ("MODEL.RESNETS.DEPTH", str(depth), *options)
        rows.append(
            Row(
                name.format(depth=depth),
                network.format(depth=depth),
                f"imagenet/{config.format(depth=depth)}.yaml",
                (top1,),
                words,
            )
        )
    return rows


def _ablation(name: str, table: int, network: str, top1: float, **keys: object) -> Row:
    """A 34-layer row that differs in keys of MODEL.ISONET."""
    base = "resnet34" if table == 7 else "isonet34"
    words = [word for key, value in keys.items() for word in (f"MODEL.ISONET.{key}", str(value))]
    return Row(
        f"{base}_{name}",
        f"{network} (Table {table})",
        f"imagenet/{base}.yaml",
        (top1,),
        (*_NO_DROPOUT, *words),
    )


_ROWS = [
    *_by_depth("resnet{depth}", "ResNet-{depth}", "resnet{depth}", (69.67, 73.29, 76.60, 77.37)),
    *_by_depth(
        "resnet{depth}_dropout",
        "ResNet-{depth}, dropout",
        "resnet{depth}",
        (68.91, 73.35, 76.40, 77.99),
        ("PRETRAIN.DROPOUT", "0.4"),
    ),
    *_by_depth("vanilla{depth}", "vanilla, {depth} layers", "vanilla", (65.67, 63.09, None, None)),
    *_by_depth(
        "vanilla{depth}_bn",
        "vanilla + BatchNorm, {depth} layers",
        "vanilla_bn",
        (68.98, 69.43, 70.00, None),
    ),
    *_by_depth(
        "isonet{depth}_nodropout",
        "ISONet-{depth}",
        "isonet{depth}",
        (67.94, 70.45, 70.73, 70.38),
        _NO_DROPOUT,
    ),
    *_by_depth(
        "isonet{depth}", "ISONet-{depth}, dropout", "isonet{depth}", (68.10, 70.90, 71.20, 71.01)
    ),
    *_by_depth(
        "resnet{depth}_nobn",
        "ResNet-{depth} without BatchNorm",
        "resnet_nobn",
        (65.66, None, None, None),
    ),
    *_by_depth(
        "risonet{depth}_nodropout",
        "R-ISONet-{depth}",
        "risonet{depth}",
        (69.06, 72.17, 74.20, 75.44),
        _NO_DROPOUT,
    ),
    *_by_depth(
        "risonet{depth}",
        "R-ISONet-{depth}, dropout",
        "risonet{depth}",
        (69.17, 73.43, 76.18, 77.08),
    ),
    _ablation("delta_ortho", 1, "34 layers, Delta + Ortho", 46.83, ACTIVATION="relu"),
    _ablation("srelu", 1, "34 layers, SReLU", 67.35, INIT="kaiming", ORTHO_COEFF=0.0),
    _ablation("srelu_ortho", 1, "34 layers, SReLU + Ortho", 68.50, INIT="kaiming"),
    _ablation("srelu_delta", 1, "34 layers, SReLU + Delta", 68.55, ORTHO_COEFF=0.0),
    _ablation("gamma1e-5", 2, "ISONet-34, gamma 1e-5", 70.08, ORTHO_COEFF=1e-5),
    _ablation("gamma3e-5", 2, "ISONet-34, gamma 3e-5", 70.44, ORTHO_COEFF=3e-5),
    _ablation("gamma3e-4", 2, "ISONet-34, gamma 3e-4", 69.32, ORTHO_COEFF=3e-4),
    _ablation("b_fixed", 3, "ISONet-34, b fixed at -1", 70.27, SRELU_LEARNABLE=False),
    _ablation("b_from-2", 3, "ISONet-34, b learned from -2", 70.04, SRELU_BIAS=-2.0),
    _ablation("srelu", 7, "ResNet-34 + SReLU", 72.92, ACTIVATION="srelu"),
    _ablation("delta", 7, "ResNet-34 + Delta", 71.80, INIT="delta"),
    _ablation("ortho", 7, "ResNet-34 + Ortho", 73.60, ORTHO_COEFF=1e-4),
    _ablation(
        "all",
        7,
        "ResNet-34 + SReLU + Delta + Ortho",
        71.53,
        ACTIVATION="srelu",
        INIT="delta",
        ORTHO_COEFF=1e-4,
    ),
]
IMAGENET = Table(
    title="ImageNet, Tables 1 to 5 and 7",
    root="output/imagenet",
    module="isonet_det.pretrain",
    trainer=PretrainTrainer,
    rows={row.name: row for row in _ROWS},
    sections=(Section("Top-1", "classification", ("top1", "top5")),),
    digits=2,
    free_keys=FREE_KEYS | {"PRETRAIN.ROOT", "PRETRAIN.EVAL_EPOCHS"},
    train_images=1281167,
    note=(
        "What the paper does not state is this project's choice: the rates of vanilla (ISONet's), "
        "vanilla + BatchNorm and ResNet without BatchNorm (ResNet's, 0.1), and the dropout of "
        "ResNet (0.4, R-ISONet's). Rows that other tables repeat: SReLU + Delta is gamma 0 of "
        "Table 2, Delta + Ortho is ReLU of Table 3, ISONet-34 without dropout is in Tables 1 to 4. "
        "Fixup is another paper's method and left out."
    ),
)
