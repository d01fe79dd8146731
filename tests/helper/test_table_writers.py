"""Published numbers beside ours, methods against pairs, LaTeX."""

import csv
import subprocess

import pytest

from core.files import ROOT, read_json, remember
from core.protocols import UserError
from helper.tables.published import read_table
from helper.tables.runs import find_runs
from helper.tables.table import against_pairs, table
from helper.tables.words import in_words
from helper.tables.writers import as_latex, latex
from scripts.make_table import main
from tests.support.run_folders import write_run

SIMKD = "--distill simkd -c 0 -d 0 -b 1"


@pytest.fixture
def runs(tmp_path):
    """Two trials of KD and SimKD by resnet32x4, and resnet8x4 alone, as the published commands write them."""
    for trial, shift in ((0, 0.0), (1, 1.0)):
        write_run(tmp_path, f"--distill kd --trial {trial}", [60, 74 + shift, 73 + shift], teacher="resnet32x4")
        write_run(tmp_path, f"{SIMKD} --trial {trial}", [70, 77 + shift], teacher="resnet32x4")
    write_run(tmp_path, "--distill vanilla --trial 0", [50, 72], alone=True)
    return tmp_path


def test_published_numbers_stand_beside_the_same_experiment_only(runs):
    write_run(runs, "--distill kd --trial 5 --epochs 10", [60, 70], teacher="resnet32x4")
    header, rows, notes = table(find_runs(runs, None), read_table("simkd").cells)
    at = {
        name: header.index(name) for name in ("method", "last epoch", "(best)", "published", "source", "runs", "gain")
    }
    found = {row[0]: [row[at[k]] for k in ("last epoch", "(best)", "published", "source", "runs")] for row in rows}
    kd = next(v for k, v in found.items() if k.startswith("kd") and v[4] == "2")
    assert kd == ["73.50 ± 0.71", "(74.50)", "74.42", "(1)", "2"]
    assert found["simkd"][2] == "78.08" and found["student alone"][2] == "73.09"
    short = next(v for k, v in found.items() if v[4] == "1" and k.startswith("kd"))
    assert short[2:4] == ["", ""]  # ten epochs are another experiment
    (source,) = [n for n in notes if n.startswith("Published (1): README of the SimKD")]
    assert source.endswith(". Accuracy of its teachers: resnet32x4 79.42.")
    gains = {row[0]: row[at["gain"]] for row in rows}
    assert gains["simkd"] == "+5.50" and gains["student alone"] == ""


def test_methods_against_pairs(runs):
    write_run(runs, "--distill kd --model_s vgg8", [70.5], teacher="resnet32x4")
    header, rows, notes = against_pairs(find_runs(runs, None), read_table("simkd").cells)
    assert header == ["method", "resnet32x4 → resnet8x4", "resnet32x4 → vgg8"]
    assert {r[0]: r[1] for r in rows} == {
        "student alone": "72.00 (72.00) [1] / 73.09",
        "kd": "73.50 ± 0.71 (74.50) [2] / 74.42",
        "simkd": "77.50 ± 0.71 (77.50) [2] / 78.08",
    }
    assert {r[0]: r[2] for r in rows} == {"student alone": "", "kd": "70.50 (70.50) [1] / 72.73", "simkd": ""}
    assert "240 epochs" in notes[0] and "published" in notes[2]


def test_teachers_alone_have_no_pairs(tmp_path, capsys):
    write_run(tmp_path, "--model resnet8x4", [60], teacher="")
    with pytest.raises(UserError, match="these runs are teachers.*leave --pivot out"):
        main(["--root", str(tmp_path), "--pivot", "--published", "simkd"])
    assert capsys.readouterr().out == ""


def test_a_column_has_one_protocol(runs):
    write_run(runs, "--distill at --epochs 10", [70.5], teacher="resnet32x4")
    with pytest.raises(UserError, match="would mix protocols.*10 epochs.*240 epochs"):
        against_pairs(find_runs(runs, None))


@pytest.mark.parametrize("line", ["--momentum 0.8", "--schedule cosine", "--label_smoothing 0.3", "--nesterov"])
def test_whatever_is_no_setting_of_the_method_is_protocol(runs, line):
    write_run(runs, f"--distill at {line}", [70.5], teacher="resnet32x4")
    with pytest.raises(UserError, match="would mix protocols"):
        against_pairs(find_runs(runs, None))
    header, rows, notes = table(find_runs(runs, None))
    found = {row[0].partition(",")[0]: row for row in rows}
    assert found["attention"][header.index("gain")] == "" and found["kd"][header.index("gain")] == "+1.50"
    assert {row[-1] for row in rows} == {"[1]", "[2]"}
    assert sum(line.split()[-1].strip("-") in note for note in notes if note.startswith("Protocol")) == 1


def test_two_image_folders_are_two_experiments(tmp_path):
    folder = write_run(tmp_path, "--distill kd --dataset folder", [60], teacher="resnet32x4")
    write_run(tmp_path, "--distill at --dataset folder", [60], teacher="resnet32x4")
    assert len(against_pairs(find_runs(tmp_path, None))[1]) == 2
    args = read_json(folder / "args.json", {}, "")
    args["identity"]["test_data"] = "other"
    remember(args, folder / "args.json")
    with pytest.raises(UserError, match="test set other"):
        against_pairs(find_runs(tmp_path, None))
    words = "Checksums, equal for equal contents: `test set` of the test data."
    assert words in table(find_runs(tmp_path, None))[2]


def test_checksums_that_tell_rows_apart_are_explained(tmp_path):
    for trial, data in enumerate(("da7a", "d1f2")):
        folder = write_run(tmp_path, f"--distill kd --trial {trial}", [60], teacher="resnet32x4")
        args = read_json(folder / "args.json", {}, "")
        args["identity"]["data"] = data
        remember(args, folder / "args.json")
    _, rows, notes = table(find_runs(tmp_path, None))
    assert sorted(row[0] for row in rows) == ["kd, data d1f2", "kd, data da7a"]
    assert "Checksums, equal for equal contents: `data` of the training data." in notes


def test_each_publication_keeps_its_number(runs):
    """resnet8x4 alone stands in two tables, with two numbers: both are shown, never their mean."""
    cells = [cell for name in ("simkd", "repdistiller_same") for cell in read_table(name).cells]
    header, rows, _ = table(find_runs(runs, None), cells)
    (alone,) = [row for row in rows if row[0] == "student alone"]
    assert (alone[header.index("published")], alone[header.index("source")]) == ("73.09, 72.50", "(1), (2)")
    _, rows, notes = against_pairs(find_runs(runs, None), cells)
    assert rows[0][1].endswith(" / 73.09 (1), 72.50 (2)") and notes[-1].startswith("Published (2): ")


def test_chosen_by_method_or_network(runs, capsys):
    write_run(runs, "--distill at --epochs 10", [70.5], teacher="resnet32x4")
    main(["--root", str(runs), "--only", "simkd,vanilla", "--pivot"])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:4]] == ["student", "simkd"]
    with pytest.raises(UserError, match="--only simkdd matches no method and no network"):
        main(["--root", str(runs), "--only", "simkdd"])


def test_a_file_in_the_way_is_one_sentence(runs):
    (runs / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        main(["--root", str(runs), "--out", str(runs / "file" / "table.md")])


def test_what_is_not_finished_is_said(runs, capsys):
    cut = write_run(runs, "--distill at", [70.5], teacher="resnet32x4")
    (cut / "parameters.json").unlink()
    main(["--root", str(runs), "--out", str(runs / "new" / "table.md")])
    assert (
        capsys.readouterr().err == "left out: 1 unfinished run\n"
        and "attention" not in (runs / "new/table.md").read_text()
    )
    with pytest.raises(UserError, match="no finished run on digits below .*, 1 unfinished"):
        main(["--root", str(runs), "--dataset", "digits"])


def test_latex(runs, capsys):
    main(["--root", str(runs), "--format", "latex", "--published", "simkd"])
    text = capsys.readouterr().out
    assert text.count(r"\\") == 4 and r"73.50 $\pm$ 0.71" in text and text.startswith("% Protocol")
    assert latex("50% of a_b & c #1 ~ ^ \\ {x}") == (
        r"50\% of a\_b \& c \#1 \textasciitilde{} \textasciicircum{} \textbackslash{} \{x\}"
    )
    lines = text.splitlines()
    (form,) = [line.removeprefix(r"\begin{tabular}").strip("{}") for line in lines if line.startswith(r"\begin")]
    assert len(form) == lines[lines.index(r"\toprule") + 1].count("&") + 1 and set(form) == {"l", "r"}
    assert as_latex(["a", "b"], [["-1.0", "x"]], []).count("$-$1.0") == 1


def test_csv_keeps_every_column(runs, tmp_path):
    out = tmp_path / "t.csv"
    main(["--root", str(runs), "--format", "csv", "--published", "simkd", "--out", str(out)])
    rows = list(csv.DictReader(out.open()))
    assert {r["method"]: r["published"] for r in rows} == {"kd": "74.42", "simkd": "78.08", "student alone": "73.09"}
    kd = next(r for r in rows if r["method"] == "kd")
    numbers = {k: kd[k] for k in ("last epoch mean", "last epoch std", "best", "gain", "n", "MACs (M)", "time (s)")}
    assert [float(v) for v in numbers.values()] == [73.5, 0.71, 74.5, 1.5, 2, 12.5, 1800], numbers
    assert next(r for r in rows if r["method"] == "student alone")["last epoch std"] == ""
    main(["--root", str(runs), "--pivot", "--out", str(out)])  # the suffix chooses the format
    rows = list(csv.DictReader(out.open()))
    pair = "resnet32x4 → resnet8x4"
    kd = next(r for r in rows if r["method"] == "kd")
    assert [kd[f"{pair} {part}"] for part in ("mean", "std", "best", "n")] == ["73.50", "0.71", "74.50", "2"]


def test_csv_gives_a_setting_a_column(runs, tmp_path):
    write_run(runs, "--distill kd --kd_T 8 --mixup 0.2", [60, 71], teacher="resnet32x4")
    out = tmp_path / "t.csv"
    main(["--root", str(runs), "--format", "csv", "--out", str(out)])
    rows = list(csv.DictReader(out.open()))
    assert {(r["method"], r["kd_T"]) for r in rows} == {("kd", ""), ("kd", "8.0"), ("simkd", ""), ("student alone", "")}


def test_a_terminal_is_not_wider_than_it_is(runs, capsys, monkeypatch):
    """Methods against pairs first; settings have columns; a trial is left out and counted."""
    write_run(runs, "--distill kd --kd_T 8 --beta 2", [60, 71], teacher="resnet32x4")
    write_run(runs, "--distill kd --max_steps 3 --trial 7", [1, 2], teacher="resnet32x4")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for width in (70, 100, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        main(["--root", str(runs)])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        assert max(map(len, lines)) <= width, width
        assert "1 trial run (--max_steps)" in captured.err
        heads = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| method")]
        assert "resnet32x4 → resnet8x4" in heads[0] and "last epoch" in heads[1] and "gain" in heads[1]
    assert {"kd_T", "beta"} <= set(heads[1])


def test_a_reader_that_has_enough_gets_no_traceback(commands, runs):
    command = f"{commands.python} {ROOT / 'scripts' / 'make_table.py'} --root {runs} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 141) and not done.stderr, done


def test_chosen_columns_under_other_headings(runs, capsys):
    main(["--root", str(runs), "--format", "csv", "--columns", "runs,method,last epoch=top-1"])
    assert capsys.readouterr().out.splitlines()[0] == "n,method,top-1 mean,top-1 std"
    with pytest.raises(UserError, match="--columns nonsense is not a column of this table; it has method, network"):
        main(["--root", str(runs), "--columns", "method,nonsense"])


@pytest.mark.parametrize(
    "accuracies,said",
    [
        ((50, 52), "kd is 10.00 points above it (higher with 2 of 2 seeds)."),
        ((50, 29), "kd is 1.50 points below it (higher with 1 of 2 seeds)."),
        ((41, 41), "kd is equal to it (higher with 1 of 2 seeds)."),
    ],
)
def test_gains_and_losses_in_words(tmp_path, accuracies, said):
    common = "--model_s resnet8 --few_ratio 0.1 --trial"
    for trial, (ours, alone) in enumerate(zip(accuracies, (40, 42), strict=True)):
        write_run(tmp_path, f"--distill vanilla {common} {trial}", [alone], alone=True)
        write_run(tmp_path, f"--path_t T.pth --distill kd {common} {trial}", [ours], teacher="resnet20")
    write_run(tmp_path, "--model resnet20", [90], teacher="")
    labels = "The students trained on 10% of the labelled images, their teacher on 100%."
    assert in_words(find_runs(tmp_path, None)) == f"resnet8 alone reaches 41.00 %; {said} {labels}"


def test_a_teacher_below_the_student_alone_is_named(tmp_path):
    write_run(tmp_path, "--distill vanilla --model_s resnet8", [81], alone=True)
    write_run(tmp_path, "--path_t T.pth --distill kd --model_s resnet8", [82], teacher="resnet20")
    assert in_words(find_runs(tmp_path, None)).endswith("A teacher is worse than that: resnet20 (79.42 %).")
