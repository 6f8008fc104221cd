#!/usr/bin/env python3
"""Install Detectron2 into the running Python: a working one is kept, else the official
repository at a pinned commit, else PyPI's copy of it without the compiled part. With --constraints
it installs nothing and prints pip's option for the tested versions beside the one that is there."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
COMMIT = "a1ce2f956a1d2212ad672e3c47d53405c2fe4312"
COPY = "sal-detectron2==0.7.2"
COPY_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
WITHOUT_COMPILED = (
    "it has no compiled part: no deformable convolution, no rotated boxes, no compiled COCO "
    "evaluation (pycocotools is used); Mask R-CNN needs none of these"
)
VERSIONS = Path(__file__).resolve().parents[1] / "constraints"
TESTED = ".tested-versions"  # in an environment that the Makefile has made
PROBE = """
import detectron2, detectron2.engine, detectron2.modeling, detectron2.model_zoo
try:
    from detectron2 import _C
    print(detectron2.__file__, "compiled")
except ImportError:
    print(detectron2.__file__, "pure")
"""


def run(*command: str, timeout: float | None = None, quiet: bool = False) -> bool:
    """Whether the command succeeded."""
    output = subprocess.DEVNULL if quiet else None
    os.environ["GIT_TERMINAL_PROMPT"] = "0"
    try:
        return not subprocess.run(command, timeout=timeout, stdout=output, stderr=output).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def constraints(kind: str) -> list[str]:
    """pip's option for the tested versions beside "official" or the "copy"; none in an environment
    that somebody else made."""
    return ["-c", f"{VERSIONS}/{kind}.txt"] if (Path(sys.prefix) / TESTED).is_file() else []


def pip(*arguments: str) -> bool:
    return run(sys.executable, "-m", "pip", *arguments)


def probe() -> str | None:
    """Where Detectron2 is and whether its compiled part is there; None if it fails to import."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE], capture_output=True, text=True, cwd="/"
    )
    return result.stdout.strip().splitlines()[-1] if result.returncode == 0 else None


def install_official() -> bool:
    if not run("git", "ls-remote", REPOSITORY, "HEAD", timeout=60, quiet=True):
        print(f"Detectron2: {REPOSITORY} cannot be reached; taking PyPI's copy.", flush=True)
        return False
    print(f"Detectron2: building the official commit {COMMIT[:12]} (minutes).", flush=True)
    # No build isolation: the build must see the torch that will run it.
    source = ["--no-build-isolation", f"git+{REPOSITORY}@{COMMIT}", *constraints("official")]
    built = pip("install", "setuptools<81", "wheel") and pip("install", *source)
    if not built:
        print("Detectron2: the official build failed; taking PyPI's copy.", flush=True)
    return built and probe() is not None


def install_copy() -> bool:
    if sys.version_info >= (3, 13):
        print("Detectron2: PyPI's copy needs numpy<2 and Python 3.10 to 3.12.")
        return False
    with tempfile.TemporaryDirectory() as folder:
        # The wheel is tagged for Python 3.10 but is pure Python: ask for it as 3.10 does.
        tags = "--python-version 3.10 --implementation cp --abi none --platform any".split()
        if not pip("download", "-q", "--no-deps", "--only-binary=:all:", *tags, "-d", folder, COPY):
            return False
        wheel = next(Path(folder).glob("*.whl"))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != COPY_SHA256:
            print(f"Detectron2: {wheel.name} has sha256 {digest}, expected {COPY_SHA256}.")
            return False
        wheel = wheel.rename(wheel.with_name("sal_detectron2-0.7.2-py3-none-any.whl"))
        needs = ["-r", f"{VERSIONS}/copy-requirements.txt", *constraints("copy")]
        installed = pip("install", "-q", *needs) and pip("install", "-q", "--no-deps", str(wheel))
        return installed and probe() is not None


def main() -> int:
    path, _, kind = (probe() or "").rpartition(" ")
    if sys.argv[1:] == ["--constraints"]:
        print(*constraints("copy" if kind == "pure" else "official"))
    elif path:
        lacks = "" if kind == "compiled" else f"; {WITHOUT_COMPILED}"
        print(f"Detectron2: kept the one at {path}{lacks}.")
    elif not run(sys.executable, "-c", "import torch, torchvision", quiet=True):
        return failed("Detectron2: install torch and torchvision first.")
    elif install_official():
        print(f"Detectron2: installed the official repository at {COMMIT}.")
    elif install_copy():
        print(f"Detectron2: installed {COPY} from PyPI; {WITHOUT_COMPILED}.")
    else:
        return failed(
            "Detectron2 could not be installed: check the network, or install it by hand (pip "
            f"install --no-build-isolation 'git+{REPOSITORY}') and run this again."
        )
    return 0


def failed(line: str) -> int:
    print(line, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
