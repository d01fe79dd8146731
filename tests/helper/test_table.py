"""scripts/make_table.py on run folders made for it."""

import json
from pathlib import Path

import pytest

from core.files import read_json, remember
from core.protocols import UserError
from helper.options.parse import parse
from helper.runs.folder import rows_checksum
from helper.tables import table as tables
from helper.tables.runs import Run, evaluated, find_runs, read_run
from tests.support.run_folders import write_run


@pytest.fixture
def add(tmp_path):
    """Writes one finished run of twenty classes; returns its folder's name. checksums: of data and teacher."""

    def add(command, name, acc=10.0, lanes=(), terms=(), stages=1, checksums=(), **more):
        settings = parse(command.split(), teacher=False)
        folder = tmp_path / "students" / "models" / name
        folder.mkdir(parents=True)
        rows = [
            {"stage": stage, "epoch": epoch, "train_loss": 8.0 / epoch + 100 * (stages - 1 - stage), "test_acc": acc}
            | {f"train_{term}": 2.0 / epoch for term in terms}
            for stage in range(stages)
            for epoch in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parameters = {"Deployed params": 1, "Deployed MACs": 2, "Total time": 0.1, "best": {"test_acc": acc}}
        parameters |= {"num_classes": 20, "lanes": list(lanes) or [name], **more}
        (folder / "parameters.json").write_text(json.dumps(parameters))
        (folder / "args.json").write_text(json.dumps({"identity": settings.identity | dict(checksums)}))
        (folder / "env.json").write_text(json.dumps({"cpu": "a CPU", "cpu_threads": 1, "gpus": []}))
        return name

    return add


@pytest.fixture
def table(tmp_path):
    def table():
        header, rows, notes = tables.table(find_runs(tmp_path, None))
        return [dict(zip(header, row, strict=True)) for row in rows], notes

    return table


def test_a_row_shows_that_the_loss_falls_and_how_far_from_chance_it_got(add, table):
    add("--distill vanilla", "alone", acc=8)
    add("--distill hint", "a", acc=20, terms=("fitnet",))
    add("--distill hint --trial 1", "b", acc=30, terms=("fitnet",))
    add("--distill kd+at", "c", terms=("at",))
    add("--distill ft", "d", stages=2, terms=("ft",))
    rows, _ = table()
    by_name = {row["method"]: row for row in rows}
    assert list(by_name) == ["student alone", "hint", "factor", "kd+attention"]
    hint = by_name["hint"]
    assert (hint["loss"], hint["own term"], hint["x chance"]) == ("8 → 4", "2 → 1", "5.0")
    assert (hint["last epoch"], hint["gain"], hint["runs"]) == ("25.00 ± 7.07", "+17.00", "2")
    assert (by_name["student alone"]["own term"], by_name["student alone"]["gain"]) == ("", "")
    assert by_name["kd+attention"]["own term"] == "attention 2 → 1"
    assert by_name["factor"]["loss"] == "8 → 4"  # of its second stage


def test_a_run_that_was_moved_and_linked_back_counts_once(add, table, tmp_path):
    folder = tmp_path / "students" / "models" / add("--distill kd", "a")
    folder.with_name("short").symlink_to(folder.name)  # its short name, as training makes it
    assert [row["runs"] for row in table()[0]] == ["1"]
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert [row["runs"] for row in table()[0]] == ["1"]


def test_the_hardware_names_the_threads_of_continuations(add, table, tmp_path):
    add("--distill kd", "a")
    path = tmp_path / "students" / "models" / "a" / "env.json"
    continued = [{"command": []}, {"command": [], "cpu_threads": 2}]
    path.write_text(json.dumps({"cpu": "a CPU", "cpu_threads": 1, "gpus": [], "continued": continued}))
    assert "Hardware: a CPU, 1 or 2 threads." in table()[1]


def test_each_of_several_own_terms_is_shown(add, table):
    """Their sum would say nothing: they are weighed differently."""
    add("--distill cakd --model_s resnet20", "a", terms=("cakd_adv", "cakd_gl", "cakd_pca", "cls"))
    add("--distill dpcd --model_s resnet8_aux_dpcd", "b", terms=("dpcd", "dpcd_ced"))
    add("--distill cakd+at --model_s resnet20", "c", terms=("at", "cakd_gl"))
    cells = {row["method"]: row["own term"] for row in table()[0]}
    assert cells == {
        "cakd": "adv 2 → 1, gl 2 → 1, pca 2 → 1",
        "dpcd": "dpcd 2 → 1, ced 2 → 1",
        "cakd+attention": "cakd gl 2 → 1, attention 2 → 1",
    }


def test_settings_off_their_default_stand_beside_the_method(add, table):
    for i, line in enumerate(("hint", "crd --nce_k 5", "kd -c 0.1 -d 0.9", "kd --protocol authors", "ab")):
        add(f"--distill {line} --init_epochs 3", str(i))
    add("--distill simkd", "wide")
    add("--distill simkd -f 4", "narrow")
    rows, notes = table()
    assert {row["method"] for row in rows} == {
        "abound, init_epochs 3",
        "crd, nce_k 5",
        "hint",
        "kd, cls 0.1, div 0.9",
        "kd",
        "simkd",
        "simkd, factor 4",
    }
    assert sum("protocol authors" in note for note in notes) == 1


def test_repetitions_on_parts_of_the_data_stand_in_one_row(add, table):
    """Every seed draws a part of its own, fits a probe of its own, and leaves images of its own without labels."""
    for trial in (0, 1):
        part = f"--few_ratio 0.1 --trial {trial}"
        teacher = {"arch_t": "resnet20", "teacher_acc": 60.0 + trial}
        add(f"--distill vanilla {part}", f"a{trial}", checksums={"data": f"{trial}"})
        add(f"--distill kd {part}", f"b{trial}", checksums={"data": f"{trial}", "teacher": "t"}, **teacher)
        fitted = {"data": f"{trial}", "teacher": f"t linear probe 0{trial}"}
        add(f"--distill kd {part} --teacher_probe linear", f"c{trial}", checksums=fitted, **teacher)
        add(f"--distill kd {part} --unlabelled rest_{trial}", f"d{trial}", acc=20, checksums={"data": f"{trial}+"})
    rows, notes = table()
    wanted = {"student alone", "kd", "kd, teacher_probe linear", "kd, images without labels"}
    assert {row["method"] for row in rows} == wanted and {row["runs"] for row in rows} == {"2"}
    by_name = {row["method"]: row for row in rows}
    assert by_name["kd, teacher_probe linear"]["teacher"] == "resnet20 60.50"
    assert by_name["kd, images without labels"]["gain"] == "+10.00"
    assert sum(note.startswith("Protocol") for note in notes) == 1 and "rest_" not in str(notes)


def test_the_protocol_names_recipe_and_processes(add, table):
    """Numbers of different recipes are not compared, and no line tells of a decay that there was not."""
    cosine = "--optimizer adamw --schedule cosine --warmup_epochs 2 --learning_rate 5e-4"
    for trial in (0, 1):
        add(f"--distill vanilla {cosine} --trial {trial}", f"a{trial}", acc=20, processes=2)
    add(f"--distill kd {cosine}", "b", acc=25, processes=2)
    add(f"--distill kd {cosine} --dataset imagenet --dali cpu", "c", processes=2)
    add(f"--distill kd {cosine} --dataset imagenet", "d", processes=2)
    add("--distill kd", "e", acc=30)
    rows, notes = table()
    lines = [note for note in notes if note.startswith("Protocol")]
    assert len(lines) == 3 and "batch 64 over 2 processes, lr 0.0005 on a cosine to 0, wd" in lines[0], lines
    assert "optimizer adamw" in lines[0] and "warmup_epochs 2" in lines[0] and "times" not in lines[0]
    assert "lr 0.05 times 0.1 after 150,180,210" in lines[-1] and "processes" not in lines[-1]
    assert [row["gain"] for row in rows if row["gain"]] == ["+5.00"], "compared with another recipe"
    assert [row["method"].endswith("dali cpu") for row in rows].count(True) == 1 and "None" not in str(rows)
    assert notes[-1] == "Hardware: a CPU, 1 thread per process; a CPU, 1 thread."


def test_runs_that_shared_their_batches_are_named(add, table):
    lanes = ("x", "y")
    add("--distill kd", "x", lanes=lanes)
    add("--distill hint", "y", lanes=lanes)
    add("--distill kd --trial 1", "z")
    _, notes = table()
    (note,) = [note for note in notes if note.startswith("Trained jointly")]
    assert note.endswith("for each seed: kd, hint.")


def test_no_note_where_nothing_was_shared(add, table):
    add("--distill kd", "x")
    assert not [note for note in table()[1] if note.startswith("Trained jointly")]


def test_repetitions_with_one_seed_are_refused(add, table):
    add("--distill kd --seed 3", "x")
    add("--distill kd --seed 3 --trial 1", "y")
    with pytest.raises(UserError, match="share seed and data order, so they have no standard deviation: x, y"):
        table()


def test_a_run_whose_epochs_are_lost_is_named(add, table, tmp_path):
    name = add("--distill kd", "emptied")
    (tmp_path / "students" / "models" / name / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="emptied/metrics.jsonl is empty: restore the file"):
        table()


def test_rows_that_a_run_did_not_write_are_refused(tmp_path):
    folder = write_run(tmp_path, "--dataset digits --model resnet8 --epochs 3", [10.0, 20.0, 30.0], teacher="")
    metrics, parameters = folder / "metrics.jsonl", folder / "parameters.json"
    one, two, three = metrics.read_text().splitlines()
    content = read_json(parameters, {}, "")
    remember(content | {"rows": rows_checksum([json.loads(x) for x in (one, two, three)])}, parameters)
    assert read_run(folder).rows[1]["test_acc"] == 20.0
    for lines, words in (
        ([one, three], "has epoch 3 of stage 0 after epoch 1"),
        ([one, two, two, three], "has epoch 2 of stage 0 after epoch 2"),
        ([one, two.replace("20.0", "21.0"), three], "do not match their checksum"),
        ([one, two], "do not match their checksum"),
        ([one, "5"], "a line is no row"),
        ([one, "{"], "a line is not JSON"),
    ):
        metrics.write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError, match=words):
            read_run(folder)
    metrics.write_text("\n".join([one, two, three]) + "\n")
    for text in ("[]", '{"best": 3}', json.dumps(content | {"best": {}}), "5"):
        parameters.write_text(text)
        with pytest.raises(UserError, match=r"parameters.json is damaged \(.+\): "):
            read_run(folder)


def test_curves_hold_the_epochs_that_all_repetitions_evaluated():
    def run(*epochs):
        rows = [{"epoch": e, **({"test_acc": 10.0 * e} if e in epochs else {})} for e in range(1, 7)]
        return Run(Path("x"), {}, {}, rows, {})

    group = [run(2, 4, 6), run(2, 3, 5, 6)]
    assert [[(row["epoch"], row["test_acc"]) for row in rows] for rows in evaluated(group)] == [[(2, 20), (6, 60)]] * 2


def test_a_data_set_has_one_name_however_it_is_spelled(tmp_path):
    for spelling, trial in (("TinyImageNet", 0), ("tinyimagenet", 1)):
        write_run(tmp_path, f"--dataset {spelling} --trial {trial}", [10.0], alone=True)
    for spelling in ("TinyImageNet", "tinyimagenet"):
        assert {run.identity["dataset"] for run in find_runs(tmp_path, spelling)} == {"tinyimagenet"}
        assert len(find_runs(tmp_path, spelling)) == 2
