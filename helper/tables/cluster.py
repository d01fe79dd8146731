"""Commands as jobs of SLURM, through submitit."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.files import ROOT
from core.packages import needed
from core.protocols import UserError


class Run:
    """One command in every task of a job: torchrun over the job's nodes, or the bare script for a single process.

    folder: what relative paths of the command refer to.
    """

    def __init__(self, command: Sequence[str], folder: Path, nodes: int = 1, processes: int = 1):
        self.command, self.folder, self.nodes, self.processes = list(command), folder, nodes, processes
        self.child: subprocess.Popen[bytes] | None = None

    @property
    def is_shell(self) -> bool:
        return self.command[0].endswith(".sh")

    def torchrun(self) -> list[str]:
        script = [str(ROOT / self.command[0]), *self.command[1:]]
        if self.is_shell:
            return ["bash", *script]
        if self.nodes == self.processes == 1:
            return [sys.executable, *script]
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={self.processes}"]
        if self.nodes == 1:
            return [*launcher, "--standalone", *script]
        nodes = subprocess.check_output(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], text=True)
        job = os.environ["SLURM_JOB_ID"]
        endpoint = f"{nodes.split()[0]}:{20000 + int(job) % 20000}"
        rendezvous = ["--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}", f"--rdzv_id={job}", "--max_restarts=3"]
        return [*launcher, f"--nnodes={self.nodes}", *rendezvous, *script]

    def __call__(self) -> int:
        before = signal.signal(signal.SIGTERM, self._pass_on)
        try:
            # with a store shared between rounds, nodes do not find each other again after one was replaced
            env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
            if self.is_shell:
                env["GPUS"] = ",".join(map(str, range(self.processes)))
            self.child = subprocess.Popen(self.torchrun(), cwd=self.folder, env=env)
            # not wait(): it holds a lock that wait() in checkpoint(), which a signal calls, would wait for
            while (code := self.child.poll()) is None:
                time.sleep(0.2)
        finally:
            signal.signal(signal.SIGTERM, before)
        if code:
            raise RuntimeError(f"{shlex.join(self.command)} ended with exit code {code}, see this job's log")
        return code

    def _pass_on(self, number: int, frame: Any) -> None:
        if self.child is not None:
            self.child.send_signal(number)

    def checkpoint(self) -> Any:
        """The job that submitit queues when this one is preempted: the same command, which finds its checkpoint."""
        import submitit

        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait()
        return submitit.helpers.DelayedSubmission(Run(self.command, self.folder, self.nodes, self.processes))


def submit(runs: Sequence[Run], folder: Path | str, cluster: str | None, wait: bool, **parameters: Any) -> list[str]:
    """Submit one job, or a job array; with `wait`, the numbers of those that failed.

    folder: of the logs. cluster: slurm, local or debug; None: slurm if this machine has it, else local. parameters: of
    submitit. UserError: no submitit, no SLURM, no such parameter.
    """
    submitit = needed("submitit", "submitting jobs")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "retort", "timeout_min": 24 * 60, **parameters})
        with executor.batch():
            jobs = [executor.submit(run) for run in runs]
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"cannot submit to {cluster or 'this machine'}: {error}") from error
    for job, run in zip(jobs, runs, strict=True):
        print(f"submitted {job.job_id}: {shlex.join(run.command)}; log in {job.paths.stdout}", flush=True)
    return [job.job_id for job in jobs if wait and job.exception() is not None]
