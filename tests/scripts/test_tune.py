"""The search is judged on a held-out slice, resumes where it stopped, and ends in a command."""

import shlex
import sys

import pytest

from core.protocols import UserError
from helper.options.parse import parse
from scripts.tune import FailedTrial, main, read_axis, trained
from tests.support.commands import ENV
from tests.support.packages import need

need("optuna")
KD = ["--path_t", "T.pth", "--distill", "at", "--model_s", "resnet8", "--epochs", "3"]


def test_finds_the_best_and_goes_on(tmp_path, capsys):
    seen = []

    def train(argv, log):
        settings = parse(argv, teacher=False)
        seen.append(settings.loss.beta)
        assert settings.data.source.val_fraction == 0.1 and settings.training.schedule.epochs == 3
        return 100 - abs(settings.loss.beta - 500) / 100

    argv = ["--search", "beta=100:1000", "--study", str(tmp_path), "--"]
    main(["--trials", "4", *argv, *KD], train)
    command = main(["--trials", "12", *argv, *KD], train)
    assert len(seen) == 12 and len(set(seen)) == 12
    final = parse(shlex.split(command)[2:], teacher=False)
    assert (
        final.loss.beta == min(seen, key=lambda b: abs(b - 500)) and final.data.source.val_fraction == 0.0
    )  # on the whole of train
    assert (tmp_path / "best.sh").read_text().splitlines()[-1] == command
    with pytest.raises(UserError, match="holds another search"):
        main(["--trials", "13", *argv, *KD, "--kd_T", "2"], train)
    capsys.readouterr()


def test_a_trial_that_diverges_is_not_the_end(tmp_path, capsys):
    seen = []

    def train(argv, log):
        beta = parse(argv, teacher=False).loss.beta
        seen.append(beta)
        if beta > 700 or len(seen) == 1:
            raise FailedTrial("exit code 2: the loss is nan")
        return beta / 10

    argv = ["--search", "beta=100:1000", "--study", str(tmp_path), "--"]
    command = main(["--trials", "9", *argv, *KD], train)
    fine = [beta for beta in seen[1:] if beta <= 700]
    assert (
        len(seen) == 9 and 0 < len(fine) < 8 and capsys.readouterr().out.count(": failed, exit code 2") == 9 - len(fine)
    )
    assert parse(shlex.split(command)[2:], teacher=False).loss.beta == max(fine)
    header = (tmp_path / "best.sh").read_text().splitlines()[1]
    assert header.startswith(f"# The best of {len(fine)} trials ({9 - len(fine)} more failed): ")
    main(["--trials", "9", *argv, *KD], train)
    assert len(seen) == 9  # what failed is not tried again
    with pytest.raises(UserError, match="all 2 trials failed, the last with no luck"):
        main(["--trials", "2", *argv[:3], str(tmp_path / "none"), "--", *KD], lambda *_: fail("no luck"))
    with pytest.raises(UserError, match="the first 3 trials failed, the last with no teacher"):
        main(["--trials", "9", *argv[:3], str(tmp_path / "wrong"), "--", *KD], lambda *_: fail("no teacher"))
    with pytest.raises(UserError, match="holds out no slice"):  # that is no trial's own fault
        main(
            ["--trials", "2", *argv[:3], str(tmp_path / "test"), "--", *KD],
            lambda *_: fail("holds out no slice", UserError),
        )


def fail(text, kind=FailedTrial):
    raise kind(text)


def test_what_is_searched():
    settings = parse([*KD[:3], "hint"], teacher=False)
    assert read_axis("hint_layer=1:3", settings).whole and not read_axis("beta=1:10:log", settings).whole
    assert read_axis("protocol=simkd,authors", settings).choices == ("simkd", "authors")
    for wrong in ("nce_k=1:2", "beta=1", "beta=2:1", "beta=0:1:log", "beta=1:2:cube", "beta=1:inf"):
        with pytest.raises(UserError, match="--search"):
            read_axis(wrong, settings)
    with pytest.raises(UserError, match="give it before --"):
        main(["--search", "beta=1:2", "--", "--val-fraction", "0.2", *KD])
    for several in (["--distill", "at,sp"], ["--model_s", "resnet8,vgg8"], ["--trials", "2"]):
        with pytest.raises(UserError, match="for one student"):
            main(["--search", "kd_T=1:2", "--", *KD, *several])


def test_a_real_search(commands, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(commands.python))
    for key, value in ENV.items():
        monkeypatch.setenv(key, value)
    given = [
        "--path_t",
        str(teacher),
        "--dataset",
        "digits",
        "--distill",
        "kd",
        "--model_s",
        "resnet8",
        "--epochs",
        "1",
    ]
    given += ["--max_steps", "2", "--tb_backend", "none", "--skip_validation"]
    main(["--search", "kd_T=2,4", "--trials", "1", "--study", str(tmp_path / "s"), "--", *given])
    out = capsys.readouterr().out
    assert "on the held-out slice" in out and "--kd_T" in out.splitlines()[-1]
    with pytest.raises(FailedTrial, match="exit code 2: .*learning_rate"):
        trained([*given, "--learning_rate", "-1", "--save_root", str(tmp_path)], tmp_path / "refused.log")
