"""Every command of scripts/hsakd parses, names a published number, and reads what another command of it writes."""

import re
import shlex
from pathlib import Path

import pytest

from core.protocols import UserError
from eval_rep import parse as parse_probe
from helper.options.naming import run_name
from helper.options.parse import parse
from models import model_for
from scripts.hsakd.probe_table import main as probe_table
from tests.support.commands import squeezed
from tests.support.interpreter import Interpreter

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "hsakd"
SCRIPT = "hsakd/few_shot.sh"
TABLES = {  # file -> cells
    "teachers.sh": 15,
    "same_style.sh": 48,
    "different_style.sh": 48,
    "few_shot.sh": 14,
    "transfer.sh": 22,
    "imagenet.sh": 11,
    "online_cifar.sh": 16,
    "online_imagenet.sh": 2,
    "dpcd.sh": 32,
}


def cells(file):
    lines = [shlex.split(line) for line in (FOLDER / file).read_text().splitlines() if line.startswith("cell ")]
    return [(name, published, argv) for _, name, published, *argv in lines]


def written():
    """Every file the training commands leave, best and last."""
    found = set()
    for _, _, (_, script, *argv) in [cell for file in TABLES for cell in cells(file)]:
        if script == "eval_rep.py":
            continue
        is_teacher = script == "train_teacher.py"
        settings = parse(argv, teacher=is_teacher)
        model = settings.model
        teacher = None
        if not is_teacher and settings.teacher.path_t:
            arch = re.sub(r"_(best|last)\.pth$", "", Path(settings.teacher.path_t[0]).name)
            teacher = model_for(arch, (3, 32, 32)).name if settings.data.source.dataset == "cifar100" else arch
        kind = "teachers" if is_teacher else "students"
        folder = f"save/{kind}/models/{run_name(settings, teacher)}"
        found |= {f"{folder}/{model}_{which}.pth" for which in ("best", "last")}
    return found


@pytest.fixture(scope="module")
def files():
    return written()


@pytest.mark.parametrize("file", TABLES)
def test_every_cell(file, files):
    found = cells(file)
    assert len(found) == TABLES[file] and len({name for name, *_ in found}) == len(found)
    for name, published, (python, script, *argv) in found:
        assert python == "python" and re.fullmatch(r"\d\d\.\d\d(±\d?\.\d\d|/\d\d\.\d\d)?|not published", published), (
            name
        )
        if script == "eval_rep.py":
            probe = parse_probe(argv)
            assert probe.s_path in files, name
            steps = [probe.views * epoch for epoch in (*probe.milestones, probe.epochs)]
            assert steps == [30, 60, 90, 100], f"{name}: not the published number of steps"
            continue
        settings = parse(argv, teacher=script == "train_teacher.py")
        assert settings.method.teacher_mode == "frozen" or not settings.as_dict().get("path_t")
        for path in settings.as_dict().get("path_t") or ():
            assert path in files, f"{name}: nothing writes {path}"
            assert not re.search("freeze_backbone:True.*_best", path), f"{name}: only the heads of {path} learned"
        start = settings.as_dict().get("pretrained_backbone")
        assert start is None or start.startswith("torchvision:") or start in files, name
        if settings.data.source.dataset == "cifar100":
            assert (
                settings.training.optim.nesterov
                and settings.training.loop.batch_size == 64
                and settings.training.optim.weight_decay == 5e-4
            )
            slow = settings.as_dict().get("model_s", "").startswith(("mobile", "Shuffle"))
            assert settings.training.schedule.learning_rate == (0.01 if slow else 0.05), name
            frozen = settings.as_dict().get("freeze_backbone")
            assert (settings.training.schedule.epochs, settings.training.schedule.lr_decay_epochs) == (
                (100, "30,60,90") if frozen else (240, "150,180,210")
            )
        else:
            assert (
                settings.training.schedule.learning_rate,
                settings.training.schedule.epochs,
                settings.training.optim.weight_decay,
            ) == (0.1, 100, 1e-4)
            assert not settings.training.optim.nesterov


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return Interpreter(tmp_path_factory.mktemp("interpreter"))


def test_a_table_lists_and_runs_its_cells(interpreter):
    """Without an argument it lists; with one it runs the cell of that name, else what matches, and nothing else."""

    def ran(*argv):
        asked = interpreter.run(SCRIPT, *argv)
        return [command for _, _, command in cells("few_shot.sh") if command[1:] in asked]

    listed = interpreter.bash(SCRIPT).stdout.splitlines()
    assert [line.split("  ")[0] for line in listed] == [name for name, *_ in cells("few_shot.sh")]
    assert "68.50±.24" in listed[2] and not ran()
    by_name = {name: command for name, _, command in cells("few_shot.sh")}
    assert by_name["25% HSAKD"] != by_name["25% HSAKD*"]
    for name, command in by_name.items():  # pasted back from the list, a name is no regular expression
        assert ran(name) == [command]
    assert ran("^[57]5?0?% HSAKD") == [by_name[f"{share}% HSAKD{star}"] for share in (50, 75) for star in ("", "*")]


def test_a_table_passes_flags_on(interpreter):
    name, _, (_, *command) = cells("few_shot.sh")[0]
    more = ["--epochs", "1", "--data_folder", "a folder"]
    assert interpreter.run(SCRIPT, name, *more) == [command + more]
    assert interpreter.run(SCRIPT, "KD$", *more)[-1][-4:] == more


@pytest.mark.parametrize("flag", [("--save_root", "my runs"), ("--save-root=my runs",)])
def test_a_table_reads_its_teachers_where_it_trains(flag, tmp_path):
    interpreter = Interpreter(tmp_path)
    (call,) = interpreter.run(SCRIPT, "25% KD", *flag)
    teacher = call[call.index("--path_t") + 1]
    assert teacher.startswith("my runs/teachers/models/resnet56_vanilla_") and call[-2:] == ["--save_root", "my runs"]
    (probe,) = interpreter.run("hsakd/transfer.sh", "STL-10 KD", *flag)
    assert probe[probe.index("--s-path") + 1].startswith("my runs/students/") and "--save_root" not in probe
    elsewhere = interpreter.tree / teacher.replace("my runs", "save")  # of a table that was trained there
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    (call,) = interpreter.run(SCRIPT, "25% KD", *flag)
    assert call[call.index("--path_t") + 1] == teacher.replace("my runs", "save")


@pytest.mark.parametrize("wrong", ["75% KDD", "["])
def test_a_table_refuses_what_names_no_cell(interpreter, wrong):
    done = interpreter.bash(SCRIPT, wrong, "1")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"no cell of few_shot.sh matches '{wrong}': ")
    assert len(done.stderr.splitlines()) == 1


def test_probes_become_a_table(tmp_path, capsys):
    import json

    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="holds no results of eval_rep.py --json, named METHOD RATIO SOLVER SEED.json"):
        probe_table([str(tmp_path)])
    for seed, top in ((0, 10.0), (1, 14.0)):
        result = {"top1": top, "best": top + 1, "manual_seed": seed, "dataset": "TinyImageNet", "images": [10000, 2000]}
        environment = {"environment": {"cpu": "a CPU", "commit": "abc"}}
        (tmp_path / f"hsakd 0.25 sgd {seed}.json").write_text(json.dumps(result | environment))
    probe_table([str(tmp_path), "--out", str(tmp_path / "table.md")])
    assert "| hsakd | 0.25 | sgd | 12.00 ± 2.83 | [13.00] | 0, 1 |" in squeezed(capsys.readouterr().out)
    page = (tmp_path / "table.md").read_text()
    (tmp_path / "hsakd 0.25 sgd 2.json").write_text('{"top1": 1')
    with pytest.raises(UserError, match="is damaged"):
        probe_table([str(tmp_path)])
    assert page.startswith("# Linear probe on TinyImageNet") and "10,000 images train the probe, 2,000 test it." in page
