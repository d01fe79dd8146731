#!/usr/bin/env python3
"""Submit trainings to SLURM, through submitit: one run on several nodes, or a file of commands as a job array.

    python scripts/slurm/submit.py --nodes 2 --gpus 4 --time 2880 -- train_student.py --path_t T.pth --distill simkd
    python scripts/slurm/submit.py --gpus 1 --grid table.txt        # one command per line, # for comments
    KINETICS=DIR python scripts/slurm/submit.py --gpus 8 --cpus 64 -- scripts/video/tsm_distil.sh TEACHER.pth

Every job starts torchrun on each of its nodes; a shell script starts its own processes, one for each GPU of $GPUS. A
job that is preempted or reaches its time limit is queued again and resumes from its last checkpoint. --cluster local
runs the same on this machine, --cluster debug in this process.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import ROOT
from core.packages import needed
from core.protocols import UserError
from helper.machine.program import run_script


class Run:
    """One command in every task of a job: torchrun over the job's nodes, or the bare script for a single process."""

    def __init__(self, command: Sequence[str], nodes: int, processes: int):
        self.command, self.nodes, self.processes = list(command), nodes, processes
        self.child: subprocess.Popen | None = None

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
            self.child = subprocess.Popen(self.torchrun(), cwd=ROOT, env=env)
            code = self.child.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
        if code:
            raise RuntimeError(f"{shlex.join(self.command)} ended with exit code {code}, see this job's log")
        return code

    def _pass_on(self, number: int, frame: Any) -> None:
        if self.child is not None:
            self.child.send_signal(number)

    def checkpoint(self) -> Any:
        """What submitit queues when the job is taken away: the same command, which finds its checkpoint."""
        import submitit

        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait()
        return submitit.helpers.DelayedSubmission(Run(self.command, self.nodes, self.processes))


def commands_of(grid: Path) -> list[list[str]]:
    try:
        lines = grid.read_text().splitlines()
    except OSError as error:
        raise UserError(f"cannot read --grid {grid}: {error.strerror}") from error
    found = [shlex.split(line, comments=True) for line in lines]
    found = [c[1:] if c and c[0] in ("python", "python3") else c for c in found if c]
    if not found:
        raise UserError(f"--grid {grid} holds no command")
    return found


def submit(args: argparse.Namespace) -> list[Any]:
    """The submitted jobs. UserError: no submitit, no such script, no SLURM."""
    commands = commands_of(args.grid) if args.grid else [args.command]
    for command in commands:
        if not command or not (ROOT / command[0]).is_file():
            raise UserError(f"'{shlex.join(command)}' must begin with a script, such as train_student.py")
        if command[0].endswith(".sh") and args.nodes > 1:
            raise UserError(f"{command[0]} starts the processes of one node: leave --nodes out")
    submitit = needed("submitit", "submitting jobs")
    try:
        executor = submitit.AutoExecutor(folder=args.logs, cluster=args.cluster)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--cluster {args.cluster}: {error}") from error
    processes = max(1, args.gpus) if args.processes is None else args.processes
    executor.update_parameters(
        name=args.name,
        nodes=args.nodes,
        tasks_per_node=1,
        gpus_per_node=args.gpus,
        cpus_per_task=args.cpus,
        timeout_min=args.time,
        slurm_array_parallelism=args.parallel,
        **({"slurm_partition": args.partition} if args.partition else {}),
        slurm_signal_delay_s=120,
    )
    with executor.batch():
        jobs = [executor.submit(Run(command, args.nodes, processes)) for command in commands]
    for job, command in zip(jobs, commands, strict=True):
        print(f"{job.job_id}: {shlex.join(command)}; log in {job.paths.stdout}")
    return jobs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--cluster",
        default=None,
        choices=("slurm", "local", "debug"),
        help="where to run (default: slurm if this machine has it, else local)",
    )
    add("--grid", type=Path, help="file with one command per line: a job array", metavar="FILE")
    add("--nodes", type=int, default=1, help="nodes per job (default 1)")
    add("--gpus", type=int, default=1, help="GPUs per node, with one process each (default 1)")
    add("--processes", type=int, help="processes per node (default: one per GPU)")
    add("--cpus", type=int, default=8, help="CPU cores per node (default 8)")
    add("--time", type=int, default=24 * 60, help="time limit in minutes (default 1440)")
    add("--partition", help="partition of the cluster", metavar="NAME")
    add(
        "--parallel",
        type=int,
        default=64,
        help="largest number of jobs of an array that run at the same time (default 64)",
    )
    add("--name", default="retort", help="name of the jobs (default retort)", metavar="TEXT")
    add("--logs", default="save/slurm", help="folder of the logs (default save/slurm)", metavar="FOLDER")
    add("--wait", action="store_true", help="wait until all jobs have ended; exit code 1 if one failed")
    add("command", nargs="*", help="the script and its arguments, after --")
    args = parser.parse_args(argv)
    if bool(args.grid) == bool(args.command):
        raise UserError("give one command after --, or several in --grid FILE")
    failed = [job.job_id for job in submit(args) if args.wait and job.exception() is not None]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    run_script(main)
