"""The notebook runs from top to bottom."""

import re

import pytest

from core.files import ROOT

PATH = ROOT / "examples" / "first_steps.ipynb"


def opened():
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient, of requirements-extra.txt")
    return nbformat.read(PATH, as_version=4)


def test_outputs_are_stripped():
    code = [cell for cell in opened().cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_first_steps():
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of requirements-extra.txt")
    notebook = opened()
    client = nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(PATH.parent)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "\n".join(output.get("text", "") + str(output.get("data", "")) for output in outputs)
    assert "Traceback" not in said and said.count("result in ") == 3
    assert re.search(r"\| kd +\| resnet8", said) and "student alone" in said and "resnet20" in said
    assert any("image/png" in output.get("data", {}) for output in outputs)
    predicted = re.findall(r"\d+_is_(\d)\.png: (\d) [\d.]+ %", said)
    assert len(predicted) == 10 and sum(true == found for true, found in predicted) >= 7
    assert re.search(r"_is_\d\.png \{'0': [\d.e-]+, ", said)
