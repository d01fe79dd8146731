"""Launchers around the scripts: torchrun that restarts, two hosts, SLURM's local executor."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from helper.tables import cluster
from tests.support.commands import AT_ONCE, ENV, ROOT

SHORT = ("--dataset", "digits", "--image_size", "8", "--model", "resnet8", "--few_ratio", "0.1", "--batch_size", "40")
SHORT += ("--tb_backend", "none")
SUBMIT = "scripts/slurm/submit.py"


def rows(root):
    return [json.loads(x) for f in root.glob("teachers/models/*/metrics.jsonl") for x in f.read_text().splitlines()]


# one of two that dies stops the other below and in test_ddp_runs.py
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_torchrun_restarts_from_the_last_checkpoint(processes, commands, tmp_path):
    """The last worker kills itself once, in the second epoch; --overwrite must keep what the restart continues."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from tests.support import nursery\n"
        f"if os.environ['RANK'] == '{processes - 1}' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    nursery.at_step(6, lambda: os.kill(os.getpid(), 9))\n"
        "from helper.machine.program import run_script\n"
        "import train_student\n"
        "run_script(lambda argv: train_student.main(argv, is_teacher=True))\n"
    )
    command = [commands.python, "-m", "torch.distributed.run", "--standalone", "--max_restarts=1"]
    command.append(f"--nproc_per_node={processes}")
    argv = [*SHORT, "--epochs", "3", "--lr_decay_epochs", "", "--overwrite", "--save_root", str(tmp_path / "save")]
    done = subprocess.run([*command, str(script), *argv], env=ENV, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert processes == 1 or "another process of this run has ended" in done.stderr
    assert done.stdout.count("at epoch 2") == 1 and [r["epoch"] for r in rows(tmp_path / "save")] == [1, 2, 3]


def test_two_hosts_of_one_process_each(commands, tmp_path):
    argv = (*SHORT, "--epochs", 3, "--lr_decay_epochs", "", "--save_root", tmp_path)
    killed = (1, {"signals": [(6, signal.SIGKILL)]})
    lost = commands("train_teacher.py", *argv, hosts=2, in_rank=killed, set=AT_ONCE)
    assert lost.code == 137 and "another process of this run has ended" in lost.err, lost.err
    assert "continuing from" in commands("train_teacher.py", *argv, hosts=2).finished().out
    assert [r["epoch"] for r in rows(tmp_path)] == [1, 2, 3]


@pytest.mark.slow  # torchrun starts six times; the quick tests are the one above and the one of a single torchrun
def test_two_hosts_one_of_which_dies_and_comes_back(tmp_path):
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True) if os.name == "posix" else None
    if probe is None or probe.returncode:
        pytest.skip("needs the right to make network namespaces")
    env = {**ENV, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "dev" / "two_hosts.sh"), str(tmp_path)],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("needs the right to make network namespaces")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "continuing from" in done.stdout and "12 epochs" in done.stdout
    assert [r["epoch"] for r in rows(tmp_path)] == list(range(1, 13))


def test_a_table_as_a_job_array_on_this_machine(commands, tmp_path):
    pytest.importorskip("submitit", reason="needs submitit, of requirements-extra.txt")
    save = tmp_path / "save"
    line = " ".join((*SHORT, "--epochs", "1", "--save_root", "save"))  # below the folder of the command
    grid = tmp_path / "grid.txt"
    grid.write_text(f"# two trials\npython train_teacher.py {line} --trial 0\ntrain_teacher.py {line} --trial 1\n")
    argv = ("--cluster", "local", "--gpus", 0, "--logs", tmp_path / "logs", "--wait")
    done = commands(SUBMIT, *argv, "--grid", grid, cwd=tmp_path)
    assert done.code == 0, done
    assert len(rows(save)) == 2 and done.out.count("log in") == 2
    commands("scripts/make_table.py", "--root", save).finished()


def test_a_shell_script_as_a_job_gets_the_devices_of_its_node(commands, tmp_path):
    pytest.importorskip("submitit", reason="needs submitit, of requirements-extra.txt")
    script = tmp_path / "show.sh"
    script.write_text('echo "on $GPUS: $1" >' + str(tmp_path / "said"))
    argv = ("--cluster", "local", "--gpus", 0, "--logs", tmp_path / "logs", "--wait", "--processes", 2)
    done = commands(SUBMIT, *argv, "--", script, "word", cwd=tmp_path)
    assert done.code == 0, done
    assert (tmp_path / "said").read_text() == "on 0,1: word\n"


def test_what_slurm_cannot_run_is_refused(commands, tmp_path):
    (tmp_path / "grid.txt").write_text("# don't\ntrain_teacher.py --name 'x\n")
    for argv, words in (
        (("--cluster", "local"), "give one command"),
        (("--nodes", 2, "--", "scripts/video/tsm_distil.sh"), "starts the processes of one node"),
        (("--cluster", "local", "--", "no_script.py"), "must begin with a script"),
        (("--cluster", "local", "--grid", tmp_path / "none.txt"), "cannot read the --grid"),
        (("--cluster", "local", "--grid", tmp_path / "grid.txt"), "grid.txt, line 2: train_teacher.py --name 'x is no"),
    ):
        done = commands(SUBMIT, *argv, cwd=tmp_path)
        assert done.code == 2 and words in done.err and "Traceback" not in done.err, done.err


def test_a_job_that_is_taken_away_ends_its_command_and_is_queued_again(monkeypatch, tmp_path):
    """submitit calls checkpoint() from a signal handler, while the job waits for its command."""
    pytest.importorskip("submitit", reason="needs submitit, of requirements-extra.txt")
    run, queued = cluster.Run(["train_student.py"], tmp_path), []
    monkeypatch.setattr(run, "torchrun", lambda: ["sleep", "60"])
    before = signal.signal(signal.SIGUSR2, lambda number, frame: queued.append(run.checkpoint()))

    def take_away():
        while run.child is None:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR2)

    threading.Thread(target=take_away, daemon=True).start()
    try:
        with pytest.raises(RuntimeError, match=f"exit code {-signal.SIGTERM}"):
            run()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (queued[0].function.command, queued[0].function.folder) == (["train_student.py"], tmp_path)
