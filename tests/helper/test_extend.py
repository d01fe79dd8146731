"""--extend: a finished run is prolonged, under a name and in a row of a table of its own."""

import pytest

from core.protocols import UserError
from helper.options.naming import before_extension
from helper.options.parse import parse
from helper.tables.runs import find_runs
from helper.tables.table import table
from tests.support.run_folders import rows_of

SHORT = ("--max_steps", 2, "--tb_backend", "none", "--lr_decay_epochs", "1")


def losses(folder):
    return [row["train_loss"] for row in rows_of(folder)]


def test_a_prolonged_run_equals_one_that_was_as_long_from_the_start(commands, tmp_path):
    long, save = (tmp_path / name for name in ("long", "save"))
    commands.teacher(*SHORT, "--epochs", 3, "--save_root", long).finished()
    argv = (*SHORT, "--epochs", 3, "--extend", 2, "--save_root", save)
    commands.teacher(*argv).refused("--extend 2", "is not a finished run with these settings")
    commands.teacher(*SHORT, "--epochs", 2, "--save_root", save).finished()
    commands.teacher(*argv, "--name", "mine", "--overwrite").refused("leave --resume and --name out")
    assert "continuing from" in commands.teacher(*argv).finished().out
    assert "already finished" in commands.teacher(*argv).finished().out
    models = save / "teachers" / "models"
    before, after = sorted(models.iterdir(), key=lambda p: "extend" in p.name)
    assert "_extend:2" in after.name and "extend" not in before.name
    (whole,) = (long / "teachers" / "models").iterdir()
    assert losses(after) == losses(whole) and losses(before) == losses(whole)[:2]
    header, rows, notes = table(find_runs(save, None), [])
    assert len(rows) == 2 and "extend" in " ".join([*header, *map(" ".join, rows), *notes])


def test_what_cannot_be_prolonged():
    with pytest.raises(UserError, match="--extend 5 .* must be below --epochs 4"):
        before_extension(parse(["--epochs", "4", "--extend", "5"], teacher=True))
    shorter = before_extension(parse(["--epochs", "4", "--extend", "2"], teacher=True))
    assert (shorter.training.schedule.epochs, shorter.run.extend) == (2, None)
