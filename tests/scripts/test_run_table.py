"""Published tables as data, as literal commands, and as grids that are run."""

import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from core.protocols import UserError
from helper.options.parse import parse
from helper.tables.jobs import Want, bundles, joined, own_flags, plan, slots_of, visible_gpus, wants
from helper.tables.published import chosen_cells, read_table, tables
from scripts.run_table import key_values, main
from tests.support.commands import ENV

# what the README files print, by hand: (table, row, teacher, student, value)
SPOT = [
    ("simkd", "student alone", "resnet32x4", "resnet8x4", 73.09),
    ("simkd", "KD", "resnet32x4", "resnet8x4", 74.42),
    ("simkd", "SimKD (f=2)", "resnet32x4", "resnet8x4", 78.08),
    ("simkd", "SimKD (f=8)", "resnet32x4", "ShuffleV2_1_5", 78.96),
    ("simkd", "SemCKD", "resnet32x4", "vgg8", 75.27),
    ("repdistiller_same", "CRD", "resnet110", "resnet32", 73.48),
    ("repdistiller_same", "KD", "vgg13", "vgg8", 72.98),
    ("repdistiller_different", "NST", "vgg13", "MobileNetV2", 58.16),
    ("repdistiller_different", "CRD", "wrn_40_2", "ShuffleV1", 76.05),
    ("recent", "NORM", "resnet110", "resnet32", 73.67),
    ("recent", "KD++", "ResNet50", "MobileNetV2", 70.10),
]


@pytest.mark.parametrize("name", tables())
def test_every_cell_is_one_the_parser_takes(name):
    for cell in read_table(name).cells:
        parse(cell.argv(), teacher=False)


def test_published_numbers():
    assert {n: len(read_table(n).cells) for n in tables()} == {
        "simkd": 36,
        "repdistiller_same": 14 * 7 - 1 - 1,  # FSP has no wrn_40_1; resnet20 alone stands twice
        "repdistiller_different": 13 * 6 - 2,  # MobileNetV2 and ShuffleV1 alone stand twice
        "recent": 152,
    }
    for table, row, teacher, student, value in SPOT:
        (cell,) = [c for c in read_table(table).rows[row] if (c.teacher, c.student) == (teacher, student)]
        assert cell.published == value
    assert {pair[:2] for pair in read_table("simkd").pairs} == {("resnet32x4", 79.42)}
    fsp = read_table("repdistiller_same").rows["FSP"]
    assert [c.student for c in fsp if math.isnan(c.published)] == ["wrn_40_1"]


def test_weights_of_a_pair_stand_beside_those_of_the_row():
    rows = {label: {c.teacher + c.student: c for c in cells} for label, cells in read_table("recent").rows.items()}
    crld, kdpp = rows["CRLD"]["wrn_40_2wrn_40_1"].settings, rows["KD++"]["ResNet50MobileNetV2"].settings
    assert (crld.as_dict()["crld_within"], crld.as_dict()["crld_across"]) == (0.5, 0.5)
    assert (kdpp.loss.div, kdpp.as_dict()["kdpp_nd"], kdpp.training.schedule.learning_rate) == (3, 0.5, 0.02)
    assert rows["KD++"]["ResNet50MobileNetV2"].source != rows["NORM"]["ResNet50MobileNetV2"].source


def test_a_run_of_another_protocol_is_not_the_cell():
    kd = read_table("simkd").rows["KD"][0]
    identity = dict(kd.settings.identity) | {"trial": "7", "seed": 7, "precision": "fp32"}
    assert kd.fits(identity, "resnet32x4")
    assert not kd.fits(identity | {"epochs": 10}, "resnet32x4") and not kd.fits(identity | {"cls": 0.1}, "resnet32x4")
    assert kd.fits(identity | {"eval_freq": 5}, "resnet32x4")  # the last epoch is evaluated in any case
    assert kd.fits({k: v for k, v in identity.items() if k != "accumulate"}, "resnet32x4")  # recorded before it existed
    assert not kd.fits(identity, "resnet110") and not kd.fits(identity, None)


def test_lanes_train_what_the_single_commands_would():
    pending = wants(read_table("simkd").cells, 2, ["--epochs", "3"])
    jobs = plan(pending, lanes=6, cache=True)
    assert sorted(f for job in jobs for f in job.folders) == sorted({w.folder for w in pending}) and len(pending) == 72
    assert len(jobs) < 30 and all(len(job.folders) <= 6 for job in jobs)
    cached = [job for job in jobs if "--teacher_cache" in job.argv]
    assert cached and all("kd" in job.argv for job in cached)  # KD alone reads nothing but logits
    assert all("--epochs" in job.argv for job in jobs)
    single = plan(pending, lanes=1, cache=False)
    assert [job.argv for job in single if "hint" in job.argv][0] == [w for w in pending if "hint" in w.argv][0].argv
    assert len(single) == 72 and not [job for job in single if "--teacher_cache" in job.argv]


def test_rows_that_differ_in_more_than_the_method_are_not_joined():
    cells = read_table("simkd").rows
    f8, f4 = (Want(c, 0, tuple(c.argv()), c.settings) for c in (cells["SimKD (f=8)"][0], cells["SimKD (f=4)"][0]))
    assert joined([f8, f4]) is None and [len(b) for b in bundles([f8, f4], 4)] == [1, 1]
    assert len({f8.folder, f4.folder}) == 2


def test_a_row_may_hold_a_switch_and_several_words():
    """--logit_stand takes no value, --weight several."""
    flags = "--distill kd --logit_stand -c 1 --weight kd=1 div=0 -d 1"
    assert own_flags(flags) == ["--logit_stand", "--weight", "kd=1", "div=0"]


def test_processes_per_gpu():
    assert slots_of([], 1, 2) == [{}, {}]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in slots_of(["2", "3"], 2, 9)] == ["2", "3", "2", "3"]
    assert visible_gpus(2, {}) == ["0", "1"] and visible_gpus(0, {"CUDA_VISIBLE_DEVICES": "2"}) == []
    assert visible_gpus(2, {"CUDA_VISIBLE_DEVICES": "2, 3"}) == ["2", "3"]
    assert visible_gpus(1, {"CUDA_VISIBLE_DEVICES": "GPU-8f2,9"}) == ["GPU-8f2"]  # torch sees one: the other is none


def test_the_callers_gpus_are_used(place, run, monkeypatch):
    given = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("scripts.run_table.run_local", lambda jobs, logs, slots: given.extend(slots) or 0)
    run()
    assert given == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "3"}]


def test_a_teacher_may_be_one_that_a_package_publishes(place, run, monkeypatch):
    started = []
    monkeypatch.setattr("scripts.run_table.run_local", lambda jobs, logs, slots: started.extend(jobs) or 0)
    (place / "save/teachers/models/resnet8_vanilla/resnet8_best.pth").unlink()
    run("--only", "AT", short=(*SHORT, "--path_t", "timm:resnet18"))
    assert [job.argv[-1] for job in started] == ["timm:resnet18"]


def test_rows_are_chosen_by_name():
    table = read_table("simkd")

    def rows(only):
        return list(dict.fromkeys(cell.row for cell in chosen_cells(table, only)))

    assert rows("") == list(table.rows) and rows("kd") == ["KD"] and rows("SimKD") == rows("simkd (")
    assert rows("simkd") == ["SimKD (f=8)", "SimKD (f=4)", "SimKD (f=2)"] and rows("KD, crd") == ["KD", "CRD"]
    assert {c.student for c in chosen_cells(table, "shuffle")} == {"ShuffleV2_1_5"}
    with pytest.raises(UserError, match="--only crdd .*student alone, KD, FitNet.*resnet8x4"):
        chosen_cells(table, "KD,CRDD")
    assert key_values("slurm_partition=gpu, timeout_min=60") == {"slurm_partition": "gpu", "timeout_min": 60}


def test_mistakes_are_one_sentence(tmp_path):
    def refused(*argv):
        with pytest.raises(UserError) as error:
            main(list(argv))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "simkd" in refused("simkdd")
    assert "--trials 0" in refused("simkd", "--trials", "0")
    assert "matches no row" in refused("simkd", "--only", "ResNeXt")
    assert "fetch_teachers" in refused(
        "simkd", "--only", "KD", "--", "--save_root", str(tmp_path), "--path_t", "no.pth"
    )
    assert "slurm_partition" in refused("simkd", "--executor", "slurm", "--slurm", "gpu", "--only", "student alone")
    said = refused("simkd", "--data_folder", "a b", "--only", "KD")
    assert "--data_folder a b" in said and "after --" in said
    (tmp_path / "mine.toml").write_text("title = 'x'")
    assert "lacks epoch" in refused(str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").write_text(OWN.replace("flags =", "flag ="))
    assert "a pair or a row lacks 'flags'" in refused(str(tmp_path / "mine.toml"))


OWN = """
title = "two students"
source = "this test"
protocol = "two steps"
epoch = "last"
runs = "1"
dataset = "digits"
[[pairs]]
teacher = "resnet8"
student = "resnet8"
teacher_accuracy = 10.0
[[rows]]
label = "student alone"
flags = "--distill vanilla"
published = [10.0]
[[rows]]
label = "AT"
flags = "--distill attention -c 1 -d 1 -b 1000"
published = [11.0]
[[rows]]
label = "SP"
flags = "--distill similarity -c 1 -d 1 -b 3000"
published = [12.0]
"""
SHORT = ("--epochs", "1", "--max_steps", "2", "--tb_backend", "none")


@pytest.fixture
def place(tmp_path, teacher) -> Path:
    """A folder with a table of its own and the teacher where the table's commands look for it."""
    (tmp_path / "own.toml").write_text(OWN)
    folder = tmp_path / "save/teachers/models/resnet8_vanilla"
    folder.mkdir(parents=True)
    (folder / "resnet8_best.pth").symlink_to(teacher)
    return tmp_path


@pytest.fixture
def run(commands, place, monkeypatch, capfd):
    """The script in this process; the trainings it starts are processes of their own."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "executable", str(commands.python))
    for key, value in ENV.items():
        monkeypatch.setenv(key, value)

    def run(*argv, short=SHORT):
        assert main(["own.toml", *argv, "--", *short]) == 0
        out, err = capfd.readouterr()
        assert not err
        return out

    return run


def test_a_grid_is_run_once(place, run):
    assert "3 to do in 2 processes" in run("--dry-run") and not (place / "save/students").exists()
    out = run("--jobs", "2")
    assert out.count("done") == 2 and "--published own" in out
    made = sorted((place / "save/students/models").iterdir())
    assert len(made) == 3 and all((f / "parameters.json").exists() for f in made)
    (made[0] / "parameters.json").unlink()
    assert "2 finished, 1 to do in 1 processes" in run("--dry-run")


def test_a_teacher_of_a_shorter_run_is_named(place, run):
    assert "warning" not in run("--dry-run")  # nothing is recorded beside it
    beside = place / "save/teachers/models/resnet8_vanilla/parameters.json"
    beside.write_text('{"epochs": 240}')
    assert "warning" not in run("--dry-run")
    beside.write_text('{"epochs": 3}')
    (line,) = [line for line in run("--dry-run").splitlines() if line.startswith("warning: the teacher ")]
    assert "resnet8_vanilla/resnet8_best.pth was trained for 3 epochs, but that of the table for 240" in line


def test_an_interrupted_grid_leaves_what_a_run_resumes_from(place, run, capfd):
    def stop():
        while not list(place.glob("save/students/models/*/metrics.jsonl")):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit) as end:
        run("--only", "student alone", short=("--epochs", "4000", "--max_steps", "2", "--tb_backend", "none"))
    assert end.value.code == 130 and "run the same command again to resume" in capfd.readouterr().out
    (unfinished,) = place.glob("save/students/models/*")
    assert list(unfinished.glob("*_last.pth")) and not (unfinished / "parameters.json").exists()


def test_handed_to_a_scheduler(place, run):
    pytest.importorskip("submitit", reason="needs submitit, of requirements-extra.txt")
    assert "submitted " in run("--executor", "submitit", "--only", "AT")
    (made,) = (place / "save/students/models").iterdir()
    assert (made / "parameters.json").exists() and list(place.glob("save/run_table/own/submitit/*.pkl"))
