"""Find a learning rate: train with one that grows until the loss diverges, and write the curve, the
numbers and a suggestion. Networks without normalization diverge where ResNets do not."""

import math
import os

from tqdm import tqdm

from ..cli import at_least_one, command, tool_parser
from ..engine.arguments import make_cfg
from ..engine.find_lr import draw_sweep, suggest_rate, sweep_rates
from ..engine.step import flush_subnormals
from ..engine.trainer import Trainer
from ..errors import ISONetError
from ..files import write_file


@command
def main() -> None:
    parser = tool_parser(
        __doc__, "find-lr --config-file bccd.yaml", config=True, output="output/find_lr"
    )
    parser.add_argument("--lowest", type=float, default=1e-5, help="rate")
    parser.add_argument("--highest", type=float, default=1.0, help="rate")
    parser.add_argument("--iterations", type=at_least_one, default=200, help="at most")
    args = parser.parse_args()
    low, high = args.lowest, args.highest
    if not 0 < low < high < math.inf:
        raise ISONetError(f"expected 0 < --lowest < --highest, got {low} and {high}")

    flush_subnormals()
    cfg = make_cfg(args)
    if cfg.SEED < 0:  # two sweeps are the same
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SEED = 0
    os.makedirs(args.output, exist_ok=True)
    sweep = sweep_rates(cfg, Trainer, low, high, args.iterations)
    points = list(tqdm(sweep, total=args.iterations, disable=None))
    rates, losses = [rate for rate, _ in points], [loss for _, loss in points]
    if len(points) < 2 or min(losses) == losses[0]:
        raise ISONetError(f"no rate from --lowest {low:g} up lowers the loss: expected a lower one")
    suggestion = suggest_rate(rates, losses)
    text = "".join(["rate,loss\n", *(f"{r},{v}\n" for r, v in points)])
    write_file(os.path.join(args.output, "find_lr.csv"), text)
    path = os.path.join(args.output, "find_lr.png")
    draw_sweep(rates, losses, suggestion, path)
    print(f"{path}\nSOLVER.BASE_LR {suggestion:.2g} (for {cfg.SOLVER.IMS_PER_BATCH} images)")
