"""The wheel and the sdist install into an empty environment, and run there."""

import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from support import REPOSITORY, metrics

TRACKED = ("isonet_det", "configs", "model_zoo", "constraints", "setup.py",
           "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")  # fmt: skip
SHORT = ["SOLVER.MAX_ITER", "20", "TEST.EXPECTED_RESULTS", "[]", "TEST.EVAL_PERIOD", "0"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Folder of the wheel and the sdist, built from a copy without anything that git ignores."""
    root = tmp_path_factory.mktemp("packages")
    (source := root / "source").mkdir()
    for name in TRACKED:
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
        else:
            shutil.copy(REPOSITORY / name, source / name)
    words = ["-m", "build", "--no-isolation", "--outdir", root / "dist", source]
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
    return root / "dist"


def test_an_environment_of_tested_versions_keeps_its_numpy():
    """Whichever clone made it: the other Detectron2's versions would replace numpy."""
    script = REPOSITORY / "tools" / "install_detectron2.py"
    words = subprocess.check_output([sys.executable, script, "--constraints"], text=True).split()
    tested = Path(words[1]).read_text() if words else f"numpy=={version('numpy')};"
    assert f"numpy=={version('numpy')};" in tested


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "options"), [(".whl", []), (".tar.gz", SHORT)])
def test_a_package_runs_the_quickstart_in_an_empty_environment(packages, tmp_path, suffix, options):
    """The wheel runs it wholly, with its bounds for AP. What the package needs is taken from this
    environment, all but the package itself."""
    (package,) = packages.glob(f"*{suffix}")
    venv.create(tmp_path / "env", with_pip=True)
    programs = tmp_path / "env" / "bin"
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # A folder that a .pth names has its packages seen, and its own .pth files, such as that of an
    # editable install, ignored.
    (site / "needed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environ["ISONET_DET_CACHE"] = str(tmp_path / "cache")

    def run(program, *words):
        done = subprocess.run(
            [programs / program, *words], cwd=tmp_path, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("python", "-m", "pip", "install", "--no-deps", "--no-build-isolation", package)
    where = run("python", "-c", "import isonet_det; print(isonet_det.__file__)")
    assert where.startswith(str(tmp_path))
    run("isonet-det", "train", "--config-file", "quickstart.yaml", "OUTPUT_DIR", "run", *options)
    assert any("bbox/AP" in row for row in metrics(tmp_path / "run"))
    assert (tmp_path / "run" / "report.html").is_file()
