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
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import ROOT, read_text
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.tables.cluster import Run, submit


def commands_of(grid: Path) -> list[list[str]]:
    found = []
    for number, line in enumerate(read_text(grid, "--grid").splitlines(), 1):
        try:
            found.append(shlex.split(line, comments=True))
        except ValueError as error:
            raise UserError(f"{grid}, line {number}: {line.strip()} is no command ({error})") from error
    found = [c[1:] if c and c[0] in ("python", "python3") else c for c in found if c]
    if not found:
        raise UserError(f"--grid {grid} holds no command")
    return found


def submitted(args: argparse.Namespace) -> list[str]:
    """The numbers of failed jobs, where --wait waits for them. UserError: no submitit, no such script, no SLURM."""
    commands = commands_of(args.grid) if args.grid else [args.command]
    for command in commands:
        if not command or not (ROOT / command[0]).is_file():
            raise UserError(f"'{shlex.join(command)}' must begin with a script, such as train_student.py")
        if command[0].endswith(".sh") and args.nodes > 1:
            raise UserError(f"{command[0]} starts the processes of one node: leave --nodes out")
    processes = max(1, args.gpus) if args.processes is None else args.processes
    return submit(
        [Run(command, Path.cwd(), args.nodes, processes) for command in commands],
        args.logs,
        args.cluster,
        args.wait,
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add(
        "--cluster",
        choices=("slurm", "local", "debug"),
        help="where to run (default: slurm if this machine has it, else local)",
    )
    add("--grid", type=Path, help="file with one command per line: a job array", metavar="FILE")
    add("--nodes", type=int, default=1, help="nodes per job")
    add("--gpus", type=int, default=1, help="GPUs per node, with one process each")
    add("--processes", type=int, help="processes per node (default: one per GPU)")
    add("--cpus", type=int, default=8, help="CPU cores per node")
    add("--time", type=int, default=24 * 60, help="time limit in minutes")
    add("--partition", help="partition of the cluster", metavar="NAME")
    add("--parallel", type=int, default=64, help="largest number of jobs of an array that run at the same time")
    add("--name", default="retort", help="name of the jobs", metavar="TEXT")
    add("--logs", default="save/slurm", help="folder of the logs", metavar="FOLDER")
    add("--wait", action="store_true", help="wait until all jobs have ended; exit code 1 if one failed")
    add("command", nargs="*", help="the script and its arguments, after --")
    args = parser.parse_args(argv)
    if bool(args.grid) == bool(args.command):
        raise UserError("give one command after --, or several in --grid FILE")
    if failed := submitted(args):
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    run_script(main)
