#!/usr/bin/env python3
"""The paper's Table 6: print the commands of its rows, run them, report on them."""

from isonet_det.reproduce.command import main
from isonet_det.reproduce.tables import TABLE6

if __name__ == "__main__":
    main(TABLE6)
