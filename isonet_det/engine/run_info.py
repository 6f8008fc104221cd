"""What produced a run: versions, commit, devices, command; kept in the run's folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import detectron2
import torch

from ..files import write_whole

FILE = "run.json"


def _commit() -> str | None:
    """The commit of the clone that this package runs from, with "-dirty" for changed files."""
    folder = Path(__file__).resolve().parents[2]
    command = "git describe --always --dirty --abbrev=12 --exclude=*".split()
    try:
        described = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return described.stdout.strip() or None if (folder / ".git").exists() else None


def collect(processes: int) -> dict[str, Any]:
    """The facts, with ``processes`` as the number of training processes."""
    from .. import __version__

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "isonet_det": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": sys.version.split()[0],
        "device": gpu or f"CPU, {torch.get_num_threads()} threads",
        "processes": processes,
        "command": sys.argv,
    }


def write_run_info(folder: str, processes: int) -> None:
    """Write ``run.json`` into a run's folder."""
    with write_whole(os.path.join(folder, FILE)) as f:
        f.write((json.dumps(collect(processes), indent=1) + "\n").encode())
