"""Split a COCO json by photos: NAME_train.json and NAME_val.json beside it. A class that is on two
photos or more is in both, as far as classes that share photos let it."""

import json
import os

from ..cli import check_share, command, tool_parser
from ..data.inspection import count_objects
from ..data.register import read_json
from ..data.regular import regularize
from ..data.splitting import split_photos
from ..errors import ISONetError
from ..files import write_file


@command
def main() -> None:
    parser = tool_parser(__doc__, "split photos.json --share 0.2")
    parser.add_argument("json", help="COCO's format")
    parser.add_argument("--share", type=float, default=0.2, help="of the photos, to evaluate")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other parts")
    args = parser.parse_args()
    check_share("--share", args.share)
    targets = [f"{os.path.splitext(args.json)[0]}_{part}.json" for part in ("train", "val")]
    for target in targets:
        if os.path.exists(target):
            raise ISONetError(f"{target} is there already: move it away, or go on with it")

    content, findings, _ = regularize(read_json(args.json, args.json)[0], args.json)
    if findings.fatal:
        raise ISONetError(f"{args.json}: {findings.fatal}")
    parts = split_photos(content, args.share, args.seed)
    if not all(part["images"] for part in parts):
        found = f"--share {args.share:g} of {len(content['images'])} photos"
        raise ISONetError(f"{args.json}: {found} leaves a part without any")
    for target, part in zip(targets, parts, strict=True):
        write_file(target, json.dumps(part))
        print("\n  ".join([target, *count_objects(part)]))
