"""Whatever ends a run, continuing it gives the numbers and the weights of the run that nothing ended."""

import json
import random
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from helper.training.resume import way_out
from tests.support.commands import DIGITS
from tests.support.run_folders import TIMING, rows_of

DEADLINE = 60  # seconds until something that must happen counts as not happening
# memory banks, class means of the teacher, a projector, two generators, momentum, and a last batch that is smaller
SETTINGS = ["--distill", "crd+simkd+kdpp", "-c", 1, "-d", 1, "--nce_k", 32, "--batch_size", 60, "--few_ratio", 0.1]
SETTINGS += ["--epochs", 6, "--lr_decay_epochs", 4, "--learning_rate", 0.01, "--tb_backend", "none"]
STEPS, EPOCHS = 3, 6


def is_timing(key: object) -> bool:
    return str(key).startswith(TIMING)


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if not is_timing(k))
    if isinstance(a, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same(folder: Path, reference: Path) -> None:
    assert rows_of(folder, TIMING) == rows_of(reference, TIMING)
    for name in ("resnet8_last.pth", "resnet8_best.pth"):
        state, wanted = (torch.load(f / name, weights_only=True) for f in (folder, reference))
        assert state.keys() == wanted.keys()
        different = [k for k in wanted if not is_timing(k) and not equal(state[k], wanted[k])]
        assert not different, (name, different)
    assert (folder / "test_best_metrics.json").read_text() == (reference / "test_best_metrics.json").read_text()
    assert not list(folder.glob(".*.tmp"))


class Run:
    """One run of SETTINGS in a save root of its own; sometimes from the beginning, mostly continued."""

    def __init__(self, commands, teacher: Path, root: Path, *more: object):
        self.commands, self.root = commands, root
        self.argv = ["--path_t", teacher, "--skip_validation", *SETTINGS, "--save_root", root, *more]

    def start(self, **hooks):
        argv = [*DIGITS, "--model_s", "resnet8", *self.argv]
        return self.commands.start("train_student.py", *argv, **hooks)

    def go(self, **hooks):
        return self.start(**hooks).wait()

    @property
    def folder(self) -> Path:
        (folder,) = (self.root / "students" / "models").iterdir()
        return folder


@pytest.fixture(scope="module")
def reference(commands, teacher, tmp_path_factory) -> Path:
    run = Run(commands, teacher, tmp_path_factory.mktemp("reference"))
    run.go().finished()
    assert [r["epoch"] for r in rows_of(run.folder)] == list(range(1, EPOCHS + 1))
    return run.folder


@pytest.mark.parametrize("moments", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(commands, teacher, reference, tmp_path, moments):
    rng, kills, finished = random.Random(0), 0, 0
    run = Run(commands, teacher, tmp_path / "killed")
    while kills < moments or not finished:
        kind = "end" if kills >= moments else rng.choice(("fsync", "torn", "time"))
        if kind == "time":
            process = run.start()
            trained = Path(process.job["out"])
            deadline = time.monotonic() + DEADLINE
            while "training" not in trained.read_text() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.5))  # the random moment itself
            process.kill()
            done = process.wait()
        else:
            done = run.go(**({} if kind == "end" else {kind: rng.randint(1, 22)}))
        assert done.code in (0, 137), (kind, done)
        kills += done.code == 137
        if done.code == 0:
            finished += 1
            assert_same(run.folder, reference)
            shutil.rmtree(run.root)  # a fresh start belongs to the moments, too


def test_a_signal_saves_in_mid_epoch(commands, teacher, reference, tmp_path):
    run, steps = Run(commands, teacher, tmp_path), EPOCHS * STEPS
    interrupted = 0
    # mid-epoch, at an epoch's last step, at its first, and in the step after a continuation
    for at, number in zip((STEPS + 2, 2, 1, 1, STEPS, steps), 3 * (signal.SIGTERM, signal.SIGINT), strict=True):
        done = run.go(signals=[[at, int(number)]])
        if done.code == 0:
            break
        interrupted += 1
        assert done.code == 128 + number and len(done.err.splitlines()) == 1, done
        assert number.name in done.err and "to resume, run the same command" in done.err
        assert "Traceback" not in done.err
    assert interrupted == 5
    run.go().finished()
    assert_same(run.folder, reference)


def test_a_run_of_two_stages_resumes_in_both_and_between_them(commands, teacher, tmp_path):
    """Stopped in the first stage, killed before the second has saved anything, stopped in its last epoch."""
    argv = ("--path_t", teacher, "--skip_validation", "--distill", "ft", "--init_epochs", 2, "--epochs", 2)
    argv += ("--batch_size", 60, "--few_ratio", 0.1, "--lr_decay_epochs", 1, "--tb_backend", "none", "--save_root")
    commands.student(*argv, tmp_path / "whole").finished()
    for at, number in ((2, signal.SIGTERM), (STEPS + 3, signal.SIGKILL), (STEPS + 2, signal.SIGTERM)):
        done = commands.student(*argv, tmp_path / "cut", signals=[[at, int(number)]])
        assert done.code == 128 + number, done
    commands.student(*argv, tmp_path / "cut").finished()
    whole, cut = (next((tmp_path / name / "students" / "models").iterdir()) for name in ("whole", "cut"))
    assert [(row["stage"], row["epoch"]) for row in rows_of(whole)] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert_same(cut, whole)


def test_second_ctrl_c_does_not_wait(commands, teacher, reference, tmp_path):
    run = Run(commands, teacher, tmp_path)
    assert run.go(signals=[[STEPS + 1, int(signal.SIGINT)]]).code == 130
    # both arrive before the step that would notice the first
    done = run.go(signals=[[2, int(signal.SIGINT)], [2, int(signal.SIGINT)]])
    assert done.code == 130 and "Traceback" not in done.err
    run.go().finished()
    assert_same(run.folder, reference)


def test_torn_line_is_cut_and_another_commit_noted(commands, teacher, reference, tmp_path):
    run = Run(commands, teacher, tmp_path)
    run.go(signals=[[STEPS * 2 + 2, int(signal.SIGTERM)]])
    metrics = run.folder / "metrics.jsonl"
    assert len(rows_of(run.folder)) == 2
    with open(metrics, "a") as file:
        file.write(metrics.read_text().splitlines()[0][:40])
    env = json.loads((run.folder / "env.json").read_text())
    del env["checksum"]
    (run.folder / "env.json").write_text(json.dumps(env | {"commit": "an older one"}))
    run.go(signals=[[STEPS + 2, int(signal.SIGTERM)]])
    run.go().finished()
    assert_same(run.folder, reference)
    noted = json.loads((run.folder / "env.json").read_text())
    assert noted["commit"] == "an older one" and noted["continued"] == [{"commit": env["commit"]}]
    assert "continued" not in json.loads((reference / "env.json").read_text())


def improvement(folder: Path) -> int | None:
    """An epoch after the first, and before the last, that was the best so far."""
    accuracy = [row["test_acc"] for row in rows_of(folder)]
    return next((e for e in range(2, EPOCHS) if accuracy[e - 1] > max(accuracy[: e - 1])), None)


def test_killed_between_best_and_last(commands, teacher, reference, tmp_path):
    """Best is newer than last, and the row of the epoch is there, or torn, or not."""
    trial = 0  # of the reference
    while not (improved := improvement(reference)):  # so short a run does not always improve
        trial += 1
        assert trial < 8, "no trial ever improved after its first epoch"
        whole = Run(commands, teacher, tmp_path / f"whole{trial}", "--trial", trial)
        whole.go().finished()
        reference = whole.folder
    run = Run(commands, teacher, tmp_path / "killed", "--trial", trial)
    run.go(signals=[[STEPS * (improved - 1) + 1, int(signal.SIGTERM)]])
    best, best_metrics, row, last = 3, 5, 7, 8  # fsyncs; the first two when metrics.jsonl is cut to length
    for kind, at in (("fsync", best + 1), ("fsync", best_metrics), ("torn", row), ("fsync", row), ("torn", last)):
        assert run.go(**{kind: at}).code == 137
        epochs = [torch.load(run.folder / f"resnet8_{n}.pth", weights_only=True)["epoch"] for n in ("last", "best")]
        assert epochs == [improved - 1, improved]
    run.go().finished()
    assert_same(run.folder, reference)


def test_resume_from_a_path(commands, teacher, reference, tmp_path):
    run = Run(commands, teacher, tmp_path / "first")
    run.go(signals=[[STEPS * 3 + 2, int(signal.SIGTERM)]])
    last = run.folder / "resnet8_last.pth"
    both = Run(commands, teacher, tmp_path / "first", "--resume", last, "--overwrite")
    both.go().refused("--overwrite would delete", "--resume")
    assert last.exists() and len(rows_of(run.folder)) == 3
    elsewhere = Run(commands, teacher, tmp_path / "second", "--resume", last)
    done = elsewhere.go(signals=[[2, int(signal.SIGTERM)]])
    assert "without --resume" in done.err and done.code == 143  # or it would begin at the old place again
    elsewhere.go().finished()
    assert_same(elsewhere.folder, reference)
    assert len(rows_of(run.folder)) == 3, "the run it came from is as it was"

    other = Run(commands, teacher, tmp_path / "third", "--resume", last, "--learning_rate", 0.1)
    other.go().refused("learning_rate was 0.01, is 0.1")
    assert not (tmp_path / "third").exists()
    missing = Run(commands, teacher, tmp_path / "third", "--resume", tmp_path / "none.pth")
    missing.go().refused("none.pth")
    foreign = Run(commands, teacher, tmp_path / "third", "--resume", teacher)
    foreign.go().refused("not the _last.pth of a run")
    assert not (tmp_path / "third").exists()


def test_overwrite_killed_halfway_leaves_nothing_to_continue(commands, teacher, reference, tmp_path):
    run = Run(commands, teacher, tmp_path, "--overwrite")
    assert run.go(signals=[[STEPS + 2, int(signal.SIGTERM)]]).code == 143
    done = run.go(signals=[[STEPS * 2 + 2, int(signal.SIGTERM)]])
    assert "continuing" not in done.out and "without --overwrite" in done.err
    Run(commands, teacher, tmp_path).go().finished()
    assert_same(run.folder, reference)


def test_a_run_that_read_other_maps_is_not_continued(commands, teacher, tmp_path):
    """Such as one of an older version, in which a method imitated another map of the same teacher."""
    run = Run(commands, teacher, tmp_path)
    assert run.start(signals=[[2, signal.SIGTERM]]).wait().code == 128 + signal.SIGTERM
    (last,) = tmp_path.glob("students/models/*/resnet8_last.pth")
    state = torch.load(last, weights_only=True)
    state["meta"]["shapes_t"]["elsewhere"] = state["meta"]["shapes_t"].pop("stage3")
    torch.save(state, last)
    run.start().wait().refused("the teacher's features", "elsewhere", "stage3", "--overwrite")


def test_a_state_that_does_not_fit_is_refused(commands, teacher, tmp_path):
    run = Run(commands, teacher, tmp_path)
    assert run.start(signals=[[2, signal.SIGTERM]]).wait().code == 128 + signal.SIGTERM
    (last,) = tmp_path.glob("students/models/*/resnet8_last.pth")
    whole = torch.load(last, weights_only=True)
    for name in ("trained", "optimizers"):
        torch.save(whole | {"step_state": {k: v for k, v in whole["step_state"].items() if k != name}}, last)
        run.go().refused("resnet8_last.pth does not fit", f"KeyError: '{name}'", "--overwrite")


def test_a_damaged_state_names_the_one_before_it(commands, teacher, reference, tmp_path):
    run = Run(commands, teacher, tmp_path)
    run.go(signals=[[STEPS * 3 + 2, int(signal.SIGTERM)]])
    last = run.folder / "resnet8_last.pth"
    previous = last.with_name("resnet8_last.prev.pth")
    assert torch.load(previous, weights_only=True)["epoch"] == torch.load(last, weights_only=True)["epoch"] == 3
    whole, rng = last.read_bytes(), random.Random(0)
    at = rng.randrange(len(whole) // 4, len(whole) // 2)
    last.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    run.go().refused("resnet8_last.pth is damaged", f"--resume {previous}")
    Run(commands, teacher, tmp_path, "--resume", previous).go().finished()
    assert_same(run.folder, reference)
    assert not previous.exists()


def test_a_way_out_of_a_path_with_spaces_can_be_typed(tmp_path):
    before = tmp_path / "my runs" / "resnet8_last.prev.pth"
    before.parent.mkdir()
    before.touch()
    assert shlex.split(way_out(before.with_name("resnet8_last.pth")))[:2] == ["--resume", str(before)]


def test_rows_are_mended_from_the_state(commands, teacher, reference, tmp_path):
    run = Run(commands, teacher, tmp_path)
    run.go(signals=[[STEPS * 4 + 2, int(signal.SIGTERM)]])
    metrics = run.folder / "metrics.jsonl"
    one, two, three, four = metrics.read_text().splitlines()
    changed = json.dumps(json.loads(two) | {"test_acc": 99.0})
    last = run.folder / "resnet8_last.pth"
    state = last.read_bytes()
    for lines in ([one, three, four], [one, changed, two, three, four], ["5", "[]"]):
        last.write_bytes(state)
        metrics.write_text("\n".join(lines) + "\n")
        done = run.go(signals=[[1, int(signal.SIGTERM)]])
        assert "differs from the rows in the checkpoint" in done.out, done
        assert metrics.read_text().splitlines()[:4] == [one, two, three, four]
    last.write_bytes(state)
    state = torch.load(last, weights_only=True)
    del state["rows"]
    torch.save(state | {"loader": {"epoch": 5, "step": 1}}, last)  # as older versions wrote it
    metrics.write_text("\n".join([one, three, four]) + "\n")
    run.go().refused("metrics.jsonl has epoch 3 of stage 0 after epoch 1 of stage 0", "--overwrite")
    metrics.write_text("\n".join([one, two, three, four]) + "\n")
    done = run.go().finished()
    assert done.out.count("has no checksum") == 1
    assert_same(run.folder, reference)
