"""--config and --print_config: files in place of flags, and runs repeated from their args.json."""

import json
import os

import pytest

from helper.options.naming import run_name
from helper.options.parse import parse, parse_students
from tests.support.run_folders import TIMING, rows_of

TOML = """
lr = 0.1
lr-decay-epochs = [2, 3]
[method]
distill = "crd"
nce_k = 64
weight = ["crd=0.8"]
"""
JSON = {"lr": 0.1, "lr_decay_epochs": "2,3", "distill": "crd", "nce_k": 64, "weight": ["crd=0.8"]}
YAML = "lr: 0.1\nlr_decay_epochs: [2, 3]\nmethod: {distill: crd, nce_k: 64, weight: [crd=0.8]}\n"
FORMS = {"toml": TOML, "json": json.dumps(JSON), "yaml": YAML, "yml": YAML}


def written(folder, name, content):
    (folder / name).write_text(content)
    return str(folder / name)


@pytest.mark.parametrize("kind", FORMS)
def test_every_form_gives_the_same(kind, tmp_path):
    path = written(tmp_path, f"mine.{kind}", FORMS[kind])
    flags = ["--lr", "0.1", "--lr_decay_epochs", "2,3", "--distill", "crd", "--nce_k", "64", "--weight", "crd=0.8"]
    mine, typed = parse(["--config", path], teacher=False), parse(flags, teacher=False)
    assert mine.as_dict() == typed.as_dict() and mine.config == typed.config
    assert run_name(mine, "resnet8") == run_name(typed, "resnet8")
    assert {mine.sources[k] for k in ("learning_rate", "lr_decay_epochs", "distill", "nce_k", "weight")} == {"file"}
    assert mine.sources["epochs"] == "data set recipe"


def test_the_command_line_wins(tmp_path):
    path = written(tmp_path, "mine.toml", TOML)
    mine = parse(["--config", path, "--nce_k", "32", "--lr_decay_epochs", "5"], teacher=False)
    assert mine.config.nce_k == 32 and mine.training.schedule.lr_decay_epochs == "5"
    assert (mine.sources["nce_k"], mine.sources["learning_rate"]) == ("command line", "file")
    assert mine.training.schedule.learning_rate == 0.1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", "epoch = 3", ("a.toml sets 'epoch'", "did you mean epochs?")),
        ("b.toml", "epochs = 'three'", ("b.toml", 'epochs = "three" must be a whole number')),
        ("c.toml", "epochs == 3", ("c.toml is not a TOML file", "line 1")),
        ("d.json", "[1, 2]", ("d.json must hold settings such as", "not a list")),
        ("e.ini", "epochs=3", ("e.ini must be a file that ends in .toml, .json, .yaml or .yml",)),
        ("f.yaml", "schedule: steps", ("f.yaml", "must be one of step, cosine")),
        ("g.toml", "nce_k = 3", ("'nce_k'", "not a setting of this script with this --distill")),
        ("h.toml", "deterministic = 1", ("deterministic = 1 must be true or false",)),
        ("i.toml", "lr = 0.1\nlearning_rate = 0.2", ("sets learning_rate twice",)),
        ("j.yaml", "a: [", ("j.yaml is not a YAML file",)),
        ("k.toml", "epochs = true", ("epochs = true must be a whole number",)),
        ("l.toml", "epochs = -1", ("--epochs -1",)),
        ("n.toml", 'distill = ""', ("--distill is empty",)),
        ("m.toml", None, ("cannot read", "m.toml': No such file")),
        ("o.toml", "epochs = 1\nepochs = 2", ("o.toml is not a TOML file",)),
        ("p.toml", "epochs = 1" + 30 * "0", ("--epochs 1000",)),
        ("q.toml", "learning_rate = nan", ("--learning_rate nan",)),
        ("r.toml", "[data]\nmixup = nan", ("--mixup nan",)),
        ("s.json", '{"epochs": ', ("s.json is not a JSON file",)),
        ("t.json", "[" * 100_000, ("t.json is not a JSON file",)),
        ("u.json", '{"epochs": {"a": {"b": 1}}}', ("u.json",)),
        ("v.json", "\0\0\0", ("v.json is not a JSON file",)),
        ("w.yaml", "!!python/object/apply:os.system ['true']", ("w.yaml is not a YAML file",)),
        ("x.yaml", "a:\n\t- b\n", ("x.yaml is not a YAML file",)),
        ("y.yaml", "- 1", ("y.yaml must hold settings", "not a list")),
        ("z.json", '{"settings": [], "sources": {}}', ("z.json",)),
    ],
)
def test_a_wrong_file_gives_one_sentence(commands, tmp_path, name, content, words):
    if content is not None:
        written(tmp_path, name, content)
    commands("train_student.py", "--config", name, cwd=tmp_path).refused(*words)


def test_a_file_that_holds_no_text(commands, tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'\n")
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("latin", "folder", "pipe"):
        commands("train_student.py", "--config", f"{name}.toml", cwd=tmp_path).refused(f"{name}.toml")


def folder_in(root):
    (found,) = root.glob("*/models/*/parameters.json")
    return found.parent


def test_a_teacher_is_repeated_from_its_args_json(commands, teacher_run, tmp_path):
    commands("train_teacher.py", "--config", teacher_run / "args.json", "--save_root", tmp_path).finished()
    again = folder_in(tmp_path)
    assert rows_of(again, TIMING) == rows_of(teacher_run, TIMING) and again.name == teacher_run.name
    before, now = (json.loads((folder / "args.json").read_text()) for folder in (teacher_run, again))
    assert now["identity"] == before["identity"] and now["sources"]["epochs"] == "file"


def test_a_student_is_repeated_bit_for_bit(commands, teacher, tmp_path):
    short = ("--path_t", teacher, "--epochs", 2, "--max_steps", 3, "--tb_backend", "none")
    given = ("--distill", "hint", "-b", 7, "--lr", 0.02, "--trial", 3, "--num_workers", 2, "--mixup", 0.2)
    commands.student(*short, *given, "--save_root", tmp_path / "a").finished()
    first = folder_in(tmp_path / "a")
    commands("train_student.py", "--config", first / "args.json", "--save_root", tmp_path / "b").finished()
    again = folder_in(tmp_path / "b")
    assert rows_of(again, TIMING) == rows_of(first, TIMING) and again.name == first.name
    argv = ["--config", str(first / "args.json"), "--trial", "4", "--distill", "kd", "--beta", "0"]
    other = parse(argv, teacher=False)
    assert (other.run.seed, other.distill, other.loss.kd_T) == (4, "kd", 4.0)
    commands("train_teacher.py", "--config", first / "args.json").refused("is from a run of train_student.py")


def test_a_default_that_has_changed_since_is_kept(teacher_run, tmp_path):
    args = json.loads((teacher_run / "args.json").read_text())
    args["settings"]["momentum"], args["settings"]["hard"] = 0.8, True  # another default, a flag of another method
    path = written(tmp_path, "args.json", json.dumps(args))
    settings = parse(["--config", path], teacher=True)
    assert settings.training.optim.momentum == 0.8 and settings.sources["momentum"] == "file"
    assert settings.run.seed == 0 and settings.sources["seed"] == "default"
    assert parse(["--config", path, "--dataset", "cifar100"], teacher=True).training.optim.momentum == 0.9


@pytest.mark.parametrize(
    "flags",
    [
        ["--distill", "crd", "--nce_k", "64", "--dataset", "digits", "-b", "0.5", "--trial", "word"],
        ["--distill", "kd+at", "--weight", "at=7", "--model_s", "vgg8"],
        ["--distill", "kd,at", "--trials", "2", "--protocol", "authors"],
        ["--path_t", "a b.pth", "c.pth", "--teacher_weight", "2", "1", "--compile_parts", "student"],
    ],
)
def test_a_printed_config_reads_back(flags, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_students([*flags, "--print_config"], teacher=False)
    path = written(tmp_path, "printed.toml", capsys.readouterr().out)
    before, now = (parse_students(argv, teacher=False) for argv in (flags, ["--config", path]))
    assert [[s.as_dict() for s in lanes] for lanes in before] == [[s.as_dict() for s in lanes] for lanes in now]
    assert [[run_name(s, "r") for s in lanes] for lanes in before] == [
        [run_name(s, "r") for s in lanes] for lanes in now
    ]
    assert now[0][0].given <= before[0][0].given | {"cls", "div", "beta"}
