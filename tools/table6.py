#!/usr/bin/env python3
"""The paper's Table 6: print the commands of its rows, run them, report on them."""

from isonet_det.table6 import TABLE6
from isonet_det.table_tool import main

if __name__ == "__main__":
    main(TABLE6)
