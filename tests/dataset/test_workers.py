"""Loader processes that are killed or hang end a run with one sentence."""

import os
import signal

import pytest
import torch

from dataset.images import imagenet
from dataset.workers import lost_worker
from helper.machine.program import run_script
from tests.dataset.test_imagenet import load, tree  # noqa: F401 (a fixture)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "a loader process was lost (DataLoader worker (pid"),
        (signal.SIGSTOP, "the loader processes sent nothing for 600 s (a disk or a decoder hangs)"),
    ],
)
def test_a_lost_worker_is_one_sentence(tree, monkeypatch, capfd, number, words):  # noqa: F811
    monkeypatch.setattr(imagenet, "TIMEOUT", 4.0)
    read = imagenet.Decoded._read

    def deadly(self, position, seed):
        if position == 5:
            os.kill(os.getpid(), number)
        return read(self, position, seed)

    monkeypatch.setattr(imagenet.Decoded, "_read", deadly)

    def main(argv):
        list(load(tree, num_workers=1).train_loader(8, seed=3, device=torch.device("cpu")))

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    err = capfd.readouterr().err
    assert stop.value.code == 2 and words in err and "Traceback" not in err, err
    assert "the same command continues from the last checkpoint" in err


def test_other_errors_keep_their_traceback():
    assert lost_worker(RuntimeError("shape mismatch")) is None
