"""Start and failure of the worker processes of a DataLoader."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import torch

TIMEOUT = 600.0  # seconds without a batch until the run ends


def lost_worker(error: BaseException) -> str | None:
    """The message about a loader process that was killed or hangs (None for other errors); ends the other processes."""
    text = str(error)
    if "DataLoader timed out" not in text and "DataLoader worker" not in text:
        return None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error for each one that is killed
    for child in multiprocessing.active_children():
        child.kill()  # a stopped process ignores everything else, and the run would wait for it
    what = (
        f"the loader processes sent nothing for {TIMEOUT:g} s (a disk or a decoder hangs)"
        if "timed out" in text
        else f"a loader process was lost ({text.splitlines()[0].rstrip('. ')}; perhaps memory ran out)"
    )
    return (
        f"{what}: run the same command again to resume from the last checkpoint; fewer --num_workers need less "
        "memory, and 0 decodes in the main process"
    )


def start_worker(worker: int) -> None:
    """One thread each. Workers ignore SIGINT and foreign SIGTERM; only their own run ends them.

    torchrun and SLURM send SIGTERM to all processes of a run; if workers died of it, the run would fail before it could
    save its state.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = multiprocessing.parent_process()
    if run is not None and hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere any SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_the_end, args=(run.pid,), daemon=True).start()


def _wait_for_the_end(run: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
