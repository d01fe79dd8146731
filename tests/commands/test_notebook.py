"""The notebook runs from top to bottom."""

import pytest

from core.files import ROOT


@pytest.mark.slow
def test_first_steps():
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of requirements-extra.txt")
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient, of requirements-extra.txt")
    path = ROOT / "examples" / "first_steps.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    said = "\n".join(
        output.get("text", "") + str(output.get("data", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "Traceback" not in said and said.count("result in ") == 3
    assert "| kd " in said and "student alone" in said and "resnet20" in said
    true, predicted = ([line for line in said.splitlines() if line.startswith(word)] for word in ("true", "predicted"))
    assert len(true) == len(predicted) == 1
