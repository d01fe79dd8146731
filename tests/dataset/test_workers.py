"""Loader processes that are killed or hang end a run with one sentence."""

import signal
import subprocess

import pytest

from dataset.workers import lost_worker
from tests.dataset.test_imagenet import tree  # noqa: F401 (a fixture)
from tests.support.commands import ENV

# in a process of its own, as torch remembers workers that were lost
PROGRAM = """
import os, sys, torch
from dataset import workers
from dataset.images import imagenet
from helper.machine.program import run_script
from tests.dataset.test_imagenet import load

workers.TIMEOUT = float(sys.argv[3])
view = imagenet.view

def deadly(files, transform, position, seed):
    if position == 5:
        os.kill(os.getpid(), int(sys.argv[2]))
    return view(files, transform, position, seed)

imagenet.view = deadly
run_script(lambda argv: list(load(sys.argv[1], num_workers=1).train_loader(8, seed=3, device=torch.device("cpu"))))
"""


@pytest.mark.parametrize(
    ("number", "seconds", "words"),
    [
        (signal.SIGKILL, 60, "a loader process was lost (DataLoader worker (pid"),
        (signal.SIGSTOP, 1, "the loader processes sent nothing for 1 s (a disk or a decoder hangs)"),
    ],
)
def test_a_lost_worker_is_one_sentence(tree, commands, number, seconds, words):  # noqa: F811
    command = [commands.python, "-c", PROGRAM, str(tree.parent), str(int(number)), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "run the same command again to resume from the last checkpoint" in done.stderr


def test_other_errors_keep_their_traceback():
    assert lost_worker(RuntimeError("shape mismatch")) is None
