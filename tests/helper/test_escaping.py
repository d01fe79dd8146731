"""Names of people reach tables, model cards and pictures as text, whatever they contain."""

import csv
import io
import warnings

import pytest

from helper.tables.writers import as_csv, as_latex, as_markdown
from scripts.export_student import card
from scripts.plot import plain

ODD = ["=cmd|' /C calc'!A0", "@sum", "+evil", "-evil", "a|b", "two\nlines", "$x_1$ & 50%", "\\undefined"]


def test_csv_cells_are_no_formulas():
    text = as_csv(["method", "gain"], [[odd, "-0.52 ± 0.10"] for odd in ODD], [])
    rows = list(csv.reader(io.StringIO(text)))[1:]
    assert [row[0] for row in rows] == [f"'{odd}" if odd[0] in "=+-@" else odd for odd in ODD]
    assert {row[1] for row in rows} == {"-0.52"}  # mean and deviation have columns of their own


def test_markdown_rows_keep_their_cells():
    lines = as_markdown(["method", "top|1"], [[odd, "1"] for odd in ODD], ["a note\n| x |"]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(ODD) and "a note | x |" in lines
    assert all(line.replace("\\|", "").count("|") == 3 for line in table)


def test_latex_rows_are_one_line():
    text = as_latex(["method", "a", "b"], [[odd, "1", "2"] for odd in ODD], ["a note\n\\input{x}"])
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(ODD) and all(line.endswith(r"\\") and line.count(" & ") == 2 for line in body)
    assert r"\textbackslash{}undefined" in text and r"\$x\_1\$ \& 50\%" in text
    assert [line for line in text.splitlines() if "input" in line] == [r"% a note \input{x}"]


def test_a_model_card_has_no_other_entries():
    yaml = pytest.importorskip("yaml", reason="needs pyyaml, of requirements-extra.txt")
    config = {
        "dataset": 'odd", evil: [x]\n---\ninjected: 1',
        "architecture": "net\n# heading",
        "method": "kd",
        "num_classes": 3,
        "measured": {"images": 3, "accuracy": 50.0},
        "parameters": 1,
        "macs": 1,
        "input_shape": [3, 8, 8],
        "input": "image",
    }
    text = card(config, {}, {}, "name\n---\n# other")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front.keys() == {"library_name", "datasets", "tags"} and len(front["datasets"]) == 1
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1


def test_pictures_show_names_as_they_are(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib, of requirements-extra.txt")
    figure, axis = plt.subplots()
    for odd in (r"$\undefined$", "$", "a$b$c", "_hidden"):
        axis.plot([1, 2], label=plain(odd))
    axis.set_title(plain(r"$\undefined$"))
    axis.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "x.png")
    assert len(axis.get_legend().get_texts()) == 4
    plt.close(figure)
