"""Write what the training loader feeds, after augmentation, as pictures with their annotations."""

import os

from tqdm import tqdm

from ..analysis.pictures import draw_training_image
from ..cli import at_least_one, command, tool_parser
from ..data.stream import build_train_loader
from ..engine.arguments import make_cfg
from ..files import write_picture


@command
def main() -> None:
    parser = tool_parser(
        __doc__,
        "look --train train.json:photos --count 8",
        config=True,
        output="output/data",
    )
    parser.add_argument("--count", type=at_least_one, default=16, help="images")
    args = parser.parse_args()

    cfg = make_cfg(args, objects=True)
    os.makedirs(args.output, exist_ok=True)
    images = (image for batch in build_train_loader(cfg, max(cfg.SEED, 0)) for image in batch)
    for i in tqdm(range(args.count), disable=None):
        image = next(images)
        name = os.path.splitext(os.path.basename(image["file_name"]))[0]
        drawn = draw_training_image(cfg, image)
        write_picture(os.path.join(args.output, f"{i:04d}-{name}.png"), drawn)
    print(f"{args.count} images: {args.output}")
