"""scripts/cifar100/method.py: every method with its authors' settings; a method that nothing is said of runs, too."""

import subprocess
from pathlib import Path

import pytest

from core.protocols import UserError
from distiller_zoo import method_dict
from helper.options.parse import parse
from scripts.cifar100 import method as script


def settings_of(name):
    return [parse(argv, teacher=program == "train_teacher.py") for program, *argv in script.commands(name, "T.pth")]


def test_what_is_published_is_of_a_method():
    assert script.PUBLISHED.keys() <= {*method_dict}
    for name, entry in script.PUBLISHED.items():
        assert entry.keys() <= {"number", "teacher", "student", "model", "flags", "auxiliary"}, name
        assert "ublished" in entry["number"] or "Reported" in entry["number"], name


@pytest.mark.parametrize("method", method_dict)
def test_the_command_is_the_published_one(method):
    *_, settings = settings_of(method)
    assert settings.distill == method
    network = settings.model.replace("32", "8") if settings.is_teacher else settings.model
    usual = "vit_tiny_cifar_distilled" if method == "deit" else "resnet8x4"
    assert network.removesuffix("_dpcd").removesuffix("_aux") == usual
    assert (settings.data.source.dataset, settings.training.schedule.epochs) == ("cifar100", 240)
    assert settings.training.loop.batch_size == 64 and settings.training.optim.weight_decay == 5e-4
    assert settings.training.schedule.lr_decay_epochs == "150,180,210"
    assert settings.training.schedule.learning_rate == (0.025 if method == "mlkd" else 0.05)
    assert bool(settings.as_dict().get("path_t")) == (method_dict[method].teacher_mode == "frozen")


def test_a_method_without_an_entry_is_run_by_its_authors_settings(monkeypatch):
    monkeypatch.setattr(script, "PUBLISHED", {})
    (command,) = script.commands("crd", "T.pth")
    assert command[:5] == ["train_student.py", "--distill", "crd", "--protocol", "authors"]
    assert command[5:9] == ["--path_t", "T.pth", "--model_t", "resnet32x4"]


def test_hkd_trains_its_auxiliary_teacher_first(monkeypatch, capsys):
    first, second = settings_of("hkd")
    assert (first.distill, first.model, first.loss.beta, first.teacher.path_t) == (
        "pkt", "resnet8x4_double", 30000, ["T.pth"],
    )  # fmt: skip
    ran, kwargs = [], []

    def start(command, **given):
        ran.append(command[1:])
        kwargs.append(given)
        return real(["echo", "result in FOLDER"], stdout=subprocess.PIPE, text=True)

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    script.main(["hkd", "T.pth", "--trial", "1"])  # T.pth is a path below the folder of the command
    assert not any("cwd" in given for given in kwargs) and all(Path(run[0]).is_absolute() for run in ran)
    assert [run[-2:] for run in ran] == [["--trial", "1"]] * 2
    assert ran[1][ran[1].index("--path_t") + 1] == "FOLDER/resnet8x4_double_best.pth"  # this very run's
    assert "Passalis" in capsys.readouterr().out


def test_without_a_teacher_the_command_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", None)
    script.main(["kd"])
    out = capsys.readouterr().out
    assert "Hinton" in out and "Published 73.33" in out and "--distill kd" in out and "TEACHER.pth" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["kd", "--trial", "1"], "'--trial' comes before the teacher's checkpoint"),
        (["vanilla", "T.pth"], "vanilla needs no teacher"),
        (["kdd", "T.pth"], "unknown method 'kdd'"),
    ],
)
def test_what_is_refused(argv, words):
    with pytest.raises(UserError, match=words):
        script.main(argv)
