import re
import runpy

import pytest
from detectron2.config import get_cfg as stock_cfg
from support import REPOSITORY

import isonet_det
from isonet_det.config import flatten

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def expanded(name):
    match = re.search(r"\{([^{}]*)\}", name)
    if not match:
        return [name]
    return [n for part in match[1].split(",") for n in expanded(name.replace(match[0], part, 1))]


def test_every_config_key_is_explained():
    hooks = runpy.run_path(str(REPOSITORY / "docs" / "hooks.py"))  # that make the page of keys
    text = hooks["on_page_markdown"]((REPOSITORY / "docs/keys.md").read_text(), None, None, None)
    stock = dict(flatten(stock_cfg()))
    for key, value in flatten(isonet_det.get_cfg()):
        if key not in stock:
            row = re.search(rf"^\| `{re.escape(key)}` \| `(.+?)` \| (.*) \|$", text, re.M)
            assert row and row[1] == repr(value) and row[2], key


def test_every_public_name_has_its_place_in_the_reference():
    text = (REPOSITORY / "docs" / "api.md").read_text()
    for name in isonet_det.__all__:
        assert re.search(rf"(:::.*\.{name}$|`{name}`|::: isonet_det\.{name}\b)", text, re.M), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_and_name_that_a_page_uses_is_there(page):
    text = page.read_text()
    named = re.findall(r"(?<![\w/.])(?:tools|configs|tests|docs|model_zoo)/[\w{},/.-]+\w", text)
    named += [f"configs/{n}" for n in re.findall(r"`([\w{},]+_[\w{},]+\.yaml)`", text)
              if not n.startswith("their_")]  # fmt: skip
    folders = (REPOSITORY, REPOSITORY / "configs" / "lazy")
    names = {name for pattern in named for name in expanded(pattern)}
    missing = {name for name in names if not any((f / name).exists() for f in folders)}
    assert missing <= {"tools/deploy/export_model.py"}  # Detectron2's own tool
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    for name in re.findall(r"isonet_det\.(\w+)\(", text):
        assert hasattr(isonet_det, name), name
    assert not re.search(r"[A-Z]+_(NUMBERS|TABLE)", text)


NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_it_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": tmp_path}}).execute()
    assert (tmp_path / "output" / "notebook" / "run" / "report.html").stat().st_size > 0
    cells = [(cell.source, cell.get("outputs", ())) for cell in notebook.cells]
    assert "'bbox'" in "".join(o.get("text", "") for _, outputs in cells for o in outputs)
    for source, outputs in cells:  # the person's own backend draws, after a training too
        if "plt.subplots" in source:
            assert any("image/png" in o.get("data", {}) for o in outputs)
