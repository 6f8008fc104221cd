#!/usr/bin/env python3
"""Publish the detector of a finished run: weights with their hash, config, metrics, log, classes
and a model card in one folder, and a record in the model zoo, by which isonet://NAME and
model_zoo.get(NAME, trained=True) find it."""

import argparse
import os
from pathlib import Path

from isonet_det.analysis.model_card import publish_detector, write_record
from isonet_det.cli import command
from isonet_det.weights.zoo import detectors_dir


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="the OUTPUT_DIR of a finished run")
    parser.add_argument("name", help="of the detector")
    parser.add_argument("--output", default="output/published", help="a folder")
    parser.add_argument("--zoo", type=Path, help="folder of the record; model_zoo/detectors")
    parser.add_argument("--repeats", nargs="*", default=[], help="runs under other seeds")
    parser.add_argument("--weights", default="model_final.pth", help="file in the run's folder")
    parser.add_argument("--url", default="", help="where the .pth will be")
    parser.add_argument("--license", default="MIT", help="of the weights")
    args = parser.parse_args()

    record = publish_detector(
        args.run,
        args.name,
        args.output,
        repeats=args.repeats,
        weights=args.weights,
        url=args.url,
        license_name=args.license,
    )
    config_file = os.path.join(args.run, "config.yaml")
    print(os.path.join(args.output, args.name))
    print(write_record(record, config_file, args.zoo or detectors_dir()))


if __name__ == "__main__":
    main()
