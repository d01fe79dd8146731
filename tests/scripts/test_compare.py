"""Runs compared: settings, paired differences, classes, curves."""

import statistics

import pytest
from scipy import stats

from core.protocols import UserError
from helper.tables.compare import paired
from helper.tables.runs import read_run
from scripts.compare import main
from tests.support.run_folders import write_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    for trial, shift in enumerate((0.0, 1.0, 0.5)):
        write_run(root, f"--distill vanilla --trial {trial}", [60, 70 + shift], alone=True)
        write_run(root, f"--distill kd --trial {trial}", [62, 72 + 2 * shift], teacher="resnet32x4")
    write_run(root, "--distill simkd -c 0 -d 0 -b 1 --trial 2", [62, 75], teacher="resnet32x4")
    return root


def runs_of(root, distill):
    runs = map(read_run, sorted((root / "students" / "models").iterdir()))
    return sorted((r for r in runs if r.identity["distill"] == distill), key=lambda r: r.identity["seed"])


def folders(root, distill):
    return [str(run.folder) for run in runs_of(root, distill)]


def test_paired_difference_is_that_of_a_t_test(root):
    kd, alone = runs_of(root, "kd"), runs_of(root, "vanilla")
    found = paired(kd, alone)
    expected = stats.ttest_rel([r.rows[-1]["test_acc"] for r in kd], [r.rows[-1]["test_acc"] for r in alone])
    low, high = expected.confidence_interval(0.95)
    assert found == f"+2.50 (95 % interval {low:+.2f} to {high:+.2f}, 0 is outside; 3 common seeds)"
    assert "too few for an interval" in paired(kd[:1], alone)
    assert paired(kd[:1], alone[1:]) == "no seed in common"
    assert "few: use 3 or more" in paired(kd[:2], alone)


def test_comparison_of_folders(root, capsys):
    alone = folders(root, "vanilla")
    main([*alone, *folders(root, "kd"), *folders(root, "simkd"), "--out", str(root / "curves.svg")])
    out = capsys.readouterr().out
    lines = {line.split("|")[1].strip(): line for line in out.splitlines() if line.startswith("|")}
    assert "vanilla" in lines["distill"] and "simkd" in lines["distill"]
    assert "epochs" not in lines  # the same in all
    assert "+2.50 (95 % interval" in lines["kd"] and "+4.50 (1 common seed: too few" in lines["simkd"]
    assert "No gains by class" in out  # these folders hold no networks
    assert "kd 73.00" in (root / "curves.svg").read_text()
    with pytest.raises(UserError, match="repetitions of one cell"):
        main(alone)
    with pytest.raises(UserError, match="no finished run"):
        main([str(root)])


def test_gains_by_class(commands, teacher_run, tmp_path, capsys):
    """Of trained networks: the mean over equally frequent classes is the gain of the accuracy."""
    short = ("--max_steps", 2, "--tb_backend", "none", "--epochs", 1, "--lr_decay_epochs", "")
    commands.teacher(*short, "--save_root", tmp_path).finished()
    (other,) = (tmp_path / "teachers" / "models").iterdir()
    main([str(teacher_run), str(other), "--classes", "5"])
    out = capsys.readouterr().out
    gains = [float(word.split()[-1]) for word in out.splitlines()[-1].partition(": ")[2].split(", ")]
    accuracy = [read_run(folder).rows[-1]["test_acc"] for folder in (teacher_run, other)]
    assert len(gains) == 10 and statistics.mean(gains) == pytest.approx(accuracy[1] - accuracy[0], abs=1.5)
