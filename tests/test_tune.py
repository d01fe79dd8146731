"""The search is judged on a held-out slice, goes on where it stopped, and ends in a command."""

import shlex

import pytest
from commands import ENV

from helper.options import parse
from helper.protocols import UserError
from scripts.tune import main, read_axis

pytest.importorskip("optuna", reason="needs optuna, of requirements-extra.txt")
KD = ["--path_t", "T.pth", "--distill", "at", "--model_s", "resnet8", "--epochs", "3"]


def test_finds_the_best_and_goes_on(tmp_path, capsys):
    seen = []

    def train(argv, log):
        settings = parse(argv, teacher=False)
        seen.append(settings.beta)
        assert settings.val_fraction == 0.1 and settings.epochs == 3
        return 100 - abs(settings.beta - 500) / 100

    argv = ["--search", "beta=100:1000", "--study", str(tmp_path), "--"]
    main(["--trials", "4", *argv, *KD], train)
    command = main(["--trials", "12", *argv, *KD], train)
    assert len(seen) == 12 and len(set(seen)) == 12
    final = parse(shlex.split(command)[2:], teacher=False)
    assert final.beta == min(seen, key=lambda b: abs(b - 500)) and final.val_fraction == 0.0  # on the whole of train
    assert (tmp_path / "best.sh").read_text().splitlines()[-1] == command
    with pytest.raises(UserError, match="holds another search"):
        main(["--trials", "13", *argv, *KD, "--kd_T", "2"], train)
    capsys.readouterr()


def test_what_is_searched():
    settings = parse([*KD[:3], "hint"], teacher=False)
    assert read_axis("hint_layer=1:3", settings).whole and not read_axis("beta=1:10:log", settings).whole
    assert read_axis("protocol=simkd,authors", settings).choices == ("simkd", "authors")
    for wrong in ("nce_k=1:2", "beta=1", "beta=2:1", "beta=0:1:log", "beta=1:2:cube"):
        with pytest.raises(UserError, match="--search"):
            read_axis(wrong, settings)
    with pytest.raises(UserError, match="give it before --"):
        main(["--search", "beta=1:2", "--", "--val-fraction", "0.2", *KD])
    for several in (["--distill", "at,sp"], ["--model_s", "resnet8,vgg8"], ["--trials", "2"]):
        with pytest.raises(UserError, match="for one student"):
            main(["--search", "kd_T=1:2", "--", *KD, *several])


def test_a_real_search(teacher, tmp_path, monkeypatch, capsys):
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
