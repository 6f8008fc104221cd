import json

import pytest
from support import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_no_output_is_stored(path):
    cells = json.loads(path.read_text())["cells"]
    assert cells and not any(c.get("outputs") or c.get("execution_count") for c in cells)


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
