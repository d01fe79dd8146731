"""Whole runs in several processes: what they compute, what they write, how they end."""

import functools
import json
import signal
import socket

import pytest
import torch

from tests.support import ddp_equal
from tests.support.commands import AT_ONCE, DIGITS
from tests.support.run_folders import TIMING, rows_of

SHORT = ("--tb_backend", "none", "--few_ratio", 0.1, "--batch_size", 40, "--lr_decay_epochs", "")
TEACHER = (*DIGITS, "--model", "resnet8", *SHORT)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def vector(state):
    return torch.cat([v.double().flatten() for k, v in state.items() if v.is_floating_point() and "running" not in k])


@functools.cache
def alone(norm, steps, parts=1):
    return vector(ddp_equal.train(norm, steps, parts))


@pytest.mark.parametrize("world, steps, norms", [(2, 10, ("none", "batch", "accumulated")), (4, 3, ("none",))])
def test_several_processes_train_as_one(world, steps, norms, commands, tmp_path):
    """With batch norm, the one process normalises every part of a batch by itself. Micro-batches cost no exchange of
    gradients each, and are one batch together."""
    commands("tests/support/ddp_equal.py", tmp_path / "out", steps, *norms, ranks=world).finished()
    for norm in norms:
        states = [torch.load(tmp_path / f"out.{norm}.{r}", weights_only=True) for r in range(world)]
        assert all(torch.equal(states[0][k], s[k]) for s in states for k in s), "ranks disagree"
        assert int(states[0]["reduced"]) == steps, "gradients travel other than once a step"
        kind = "batch" if norm == "batch" else "none"
        mine, parts = vector(states[0]), world if norm == "batch" else 1
        reference = alone(kind, steps, parts)
        assert relative(mine, reference) < 1e-6, relative(mine, reference)
        assert relative(alone(kind, 1, parts), reference) > 1e-3, "nothing was trained"
        if norm == "batch":
            assert relative(alone(norm, steps), reference) > 1e-5, "the reference does not normalise by parts"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def the_run(root, kind="students"):
    (folder,) = (root / kind / "models").iterdir()
    return folder


def own_launcher(commands, *argv):
    """A script started with the published flags."""
    flags = ("--multiprocessing-distributed", "--dist-url", f"tcp://127.0.0.1:{free_port()}", "--gpu_id", "0,1")
    return commands(*argv, *flags)


@pytest.fixture(scope="module")
def crd(teacher):
    return ("--path_t", teacher, "--distill", "crd", "--nce_k", 16, "--ema", 0.5, *SHORT)


@pytest.fixture(scope="module")
def two(crd, commands, tmp_path_factory):
    """Folder and outcome of a CRD run of two processes."""
    root = tmp_path_factory.mktemp("two")
    argv = (*DIGITS, "--model_s", "resnet8", *crd, "--epochs", 2, "--save_root", root)
    done = own_launcher(commands, "train_student.py", *argv, "--log-all-ranks", "--dist-backend", "gloo").finished()
    return the_run(root), done


def test_rank_0_writes_and_every_rank_logs_on_request(two):
    folder, done = two
    assert done.out.count("==> training...") == 1
    assert [r["epoch"] for r in rows_of(folder)] == [1, 2]
    names = {p.name for p in folder.iterdir()}
    assert {"log.txt", "log_rank1.txt", "parameters.json", "resnet8_last.pth", "resnet8_best.pth"} <= names
    assert json.loads((folder / "parameters.json").read_text())["processes"] == 2
    assert "Epoch 2, train: Acc@1" in (folder / "log_rank1.txt").read_text()
    state = torch.load(folder / "resnet8_last.pth", weights_only=True)
    assert len(state["ranks"]) == 2
    assert not torch.equal(*(r["step"] for r in state["ranks"])), "both ranks draw the same negatives"


def test_every_test_image_counts_once(two, commands):
    folder, _ = two
    for row in rows_of(folder):  # of 360 images, a whole number is right
        assert row["test_acc"] * 3.6 == pytest.approx(round(row["test_acc"] * 3.6), abs=1e-6)
    argv = ("test_model.py", "--path", folder / "resnet8_best.pth", "--dataset", "digits")
    done = commands(*argv).finished()
    assert f"top-1 {max(r['test_acc'] for r in rows_of(folder)):.2f}" in done.out
    assert "without effect here: --rank (one process)" in commands(*argv, "--rank", 0).finished().out
    commands(*argv, "--gpu_id", "").refused("--gpu_id ''")
    several = commands(*argv, "--dist_backend", "gloo", ranks=2).finished()
    tested = [out.splitlines()[1:-1] for out in (done.out, several.out)]  # without the devices and the time
    assert tested[0] == tested[1] and "360 samples" in tested[0][0]


def test_a_process_set_that_is_interrupted_goes_on_with_the_same_numbers(two, crd, commands, tmp_path):
    """SIGTERM for one process stops both at the same step, in mid-epoch; two others go on from there."""
    argv = (*crd, "--epochs", 2, "--save_root", tmp_path, "--skip_validation")
    stopped = commands.student(*argv, ranks=2, in_rank=(1, {"signals": [(2, signal.SIGTERM)]}))
    assert stopped.code == 143 and "in epoch 1 after step 3" in stopped.err, (stopped.out, stopped.err)
    assert len(stopped.err.splitlines()) == 1, stopped.err
    commands.student(*argv, ranks=2).finished()
    assert rows_of(the_run(tmp_path), TIMING) == rows_of(two[0], TIMING)


def test_a_run_goes_on_with_another_number_of_processes(crd, commands, tmp_path):
    """One epoch alone, one in two processes, one alone."""
    argv = (*crd, "--epochs", 3, "--save_root", tmp_path, "--skip_validation")
    assert commands.student(*argv, signals=[(4, signal.SIGTERM)]).code == 143
    stopped = commands.student(*argv, ranks=2, in_rank=(0, {"signals": [(4, signal.SIGTERM)]}))
    assert stopped.code == 143 and "after epoch 2" in stopped.err, stopped.err
    commands.student(*argv).finished()
    assert [r["epoch"] for r in rows_of(the_run(tmp_path))] == [1, 2, 3]
    log = (the_run(tmp_path) / "log.txt").read_text()
    assert "the state has 1 process(es), this run has 2" in log
    assert "the state has 2 process(es), this run has 1" in log


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_stops_the_other(commands, victim, tmp_path):
    argv = (*TEACHER, "--epochs", 500, "--save_root", tmp_path, "--print_freq", 1)
    killed = (victim, {"signals": [(5, signal.SIGKILL)]})
    done = commands("train_teacher.py", *argv, ranks=2, in_rank=killed, set=AT_ONCE)
    assert done.code == 137 and len(rows_of(the_run(tmp_path, "teachers"))) == 1  # the other went no further
    assert "another process of this run has ended" in done.err and "Traceback" not in done.err, done.err


def test_a_process_that_hangs_stops_the_other(commands, tmp_path):
    argv = (*TEACHER, "--epochs", 500, "--save_root", tmp_path, "--dist_timeout", 2)
    done = commands("train_teacher.py", *argv, ranks=2, in_rank=(1, {"hang_at": 5}), set=AT_ONCE)
    assert done.code == 2 and "does not answer" in done.err and "--dist_timeout" in done.err, done.err
    assert "Traceback" not in done.err


IN_EPOCH, IN_EVALUATION = {"signals": [(5, signal.SIGSTOP)]}, {"evaluation_signal": signal.SIGSTOP}


@pytest.mark.parametrize(
    ("victim", "where"),
    [
        (0, IN_EPOCH),
        (1, IN_EVALUATION),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in ((1, IN_EPOCH), (0, IN_EVALUATION))),
    ],
)
def test_a_process_that_is_stopped_is_noticed_wherever_it_is(commands, victim, where, tmp_path):
    """In mid-epoch and in evaluation, where a collective of the control group would wait for two hours."""
    argv = (*TEACHER, "--epochs", 500, "--max_steps", 8, "--save_root", tmp_path, "--dist_timeout", 3)
    done = commands("train_teacher.py", *argv, ranks=2, in_rank=(victim, where), set=AT_ONCE)
    assert done.code == 2 and "does not answer" in done.err and "Traceback" not in done.err, done.err


def test_an_error_of_all_is_said_once(commands, tmp_path):
    argv = ("--batch_size", 41, "--save_root", tmp_path)
    commands("train_teacher.py", *TEACHER, *argv, ranks=2).refused("batch_size 41", "2 processes", "multiple of 2")
    assert not list(tmp_path.iterdir())


def test_an_error_of_one_is_said_by_it_or_by_all(commands, tmp_path):
    """Rank 0 alone looks into the folder; what it finds there stops all."""
    argv = (*TEACHER, "--save_root", tmp_path, "--resume", tmp_path / "none.pth")
    commands("train_teacher.py", *argv, ranks=2).refused("none.pth", "No such file")


def test_the_launcher_refuses_what_cannot_start(commands, tmp_path):
    def refused(*argv, words):
        argv = ("--multiprocessing-distributed", "--gpu_id", "0,1", "--save_root", tmp_path / "save", *argv)
        commands("train_teacher.py", *TEACHER, *argv).refused(*words)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused("--dist-url", f"tcp://127.0.0.1:{port}", words=(f"port {port} is used",))
    if not torch.cuda.is_available():
        refused("--dist-backend", "nccl", words=("nccl needs CUDA devices",))
    refused("--world-size", 2, "--rank", 2, words=("--rank 2", "--world_size 2"))
    refused("--dist-url", "file:///tmp/x", words=("tcp://",))
    refused("--dist_timeout", 0, words=("--dist_timeout 0",))
    url = ("--dist_url", f"tcp://127.0.0.1:{free_port()}", "--world_size", 2, "--rank", 1, "--dist_timeout", 1)
    refused(*url, words=("did not meet at 127.0.0.1",))
    assert not (tmp_path / "save").exists()


def test_processes_that_do_not_come_are_missed(commands, tmp_path):
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    argv = (*TEACHER, "--save_root", tmp_path / "save", "--dist_timeout", 1)
    commands("train_teacher.py", *argv, env=env).refused("did not meet at 127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env["MASTER_PORT"] = str(taken.getsockname()[1])
        commands("train_teacher.py", *argv, env=env).refused("used by another process")


def test_sync_bn_needs_cuda(commands, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    argv = (*TEACHER, "--sync-bn", "--save_root", tmp_path / "save")
    commands("train_teacher.py", *argv).refused("--sync_bn", "CUDA")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a CUDA device")
def test_a_run_with_sync_bn_finishes(commands, tmp_path):
    own_launcher(commands, "train_teacher.py", *TEACHER, "--sync-bn", "--epochs", 1, "--save_root", tmp_path).finished()
