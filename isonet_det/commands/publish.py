"""Publish the detector of a finished run: weights, config, metrics, log, classes and model card in
a folder, and a record in the model zoo, by which isonet://NAME finds it."""

import os
from pathlib import Path

from ..analysis.model_card import publish_detector, write_record
from ..cli import command, tool_parser
from ..weights.zoo import detectors_dir


@command
def main() -> None:
    parser = tool_parser(__doc__, "publish output/bccd cells", output="output/published")
    parser.add_argument("run", help="the OUTPUT_DIR of a finished run")
    parser.add_argument("name", help="of the detector")
    parser.add_argument("--zoo", type=Path, help="folder of the record; model_zoo/detectors")
    parser.add_argument("--repeats", nargs="*", default=[], help="runs under other seeds")
    parser.add_argument("--weights", default="model_final.pth", help="file in the run's folder")
    parser.add_argument("--url", default="", help="where the .pth will be")
    parser.add_argument("--license", dest="license_name", default="MIT", help="of the weights")
    args = parser.parse_args()

    options = {name: getattr(args, name) for name in ("repeats", "weights", "url", "license_name")}
    record = publish_detector(args.run, args.name, args.output, **options)
    print(os.path.join(args.output, args.name))
    config_file = os.path.join(args.run, "config.yaml")
    print(write_record(record, config_file, args.zoo or detectors_dir()))
