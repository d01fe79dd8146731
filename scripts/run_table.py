#!/usr/bin/env python3
"""Run a published table: bash scripts/run_table.sh simkd --trials 3 [--dry-run] [-- --data_folder ../data/]

Finished cells are skipped, interrupted ones resume. Students with the same teacher and the same weights of
cross-entropy and KL are trained together in one process (--lanes 1: each alone). Methods that read only the teacher's
logits take them from a cache on disk. One process runs on each GPU (all, or those of CUDA_VISIBLE_DEVICES); on a CPU,
--jobs processes run. Flags after -- are passed to every training command.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.option import whole
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.networks.load import published
from helper.options.quick import normalised
from helper.tables.cluster import Run, submit
from helper.tables.jobs import plan, run_local, short_teachers, slots_of, visible_gpus, wants
from helper.tables.published import chosen_cells, read_table, tables


def key_values(text: str) -> dict[str, Any]:
    """'partition=gpu,timeout_min=60' -> update_parameters of submitit."""
    out: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--slurm '{pair}' must have the form NAME=VALUE, such as slurm_partition=gpu")
        out[key.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return out


class _Parser(ScriptParser):
    """A script's, except that a flag of training is answered with its place."""

    def error(self, message: str) -> Any:
        kind, _, words = message.partition(": ")
        if kind == "unrecognized arguments":
            raise UserError(
                f"run_table.py has no flag {words}: put flags of training after --, as in run_table.sh simkd -- "
                "--data_folder ../data/"
            )
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    argv, extra = argv[:cut], argv[cut + 1 :]
    parser = _Parser(description=__doc__)
    add = parser.add_argument
    add("table", nargs="?", help="name of a table, see --list; or the path of your own FILE.toml")
    add("--list", action="store_true", help="list the tables")
    add("--trials", **whole(1), default=1, help="repetitions, with trial and seed 0, 1, ...")
    add("--only", default="", help="only rows and students whose names hold these, such as KD,vgg8", metavar="NAMES")
    add("--dry_run", action="store_true", help="print which cells would run and which are finished")
    add("--lanes", **whole(1), default=6, help="students to train in one process")
    add("--no_cache", action="store_true", help="do not cache the teacher's logits")
    add("--jobs", **whole(1), default=1, help="concurrent processes without a GPU")
    add("--per_gpu", **whole(1), default=1, help="processes per GPU")
    add("--executor", choices=("local", "slurm", "submitit"), default="local", help="where to run")
    add("--slurm", default="", help="parameters of submitit, such as slurm_partition=gpu,gpus_per_node=1")
    add("--no_wait", action="store_true", help="exit after submitting")
    args = parser.parse_args(normalised(argv))
    if args.list or not args.table:
        for name in tables():
            table = read_table(name)
            print(f"{name:24s} {table.title}: {len(table.cells)} cells; {table.source}")
        return 0
    table = read_table(args.table)
    everything = wants(chosen_cells(table, args.only), args.trials, extra)
    finished = [w for w in everything if (w.folder / "parameters.json").exists()]
    pending = [w for w in everything if w not in finished]
    jobs = plan(pending, args.lanes, not args.no_cache)
    print(
        f"{table.name}: {len(everything)} runs, {len(finished)} finished, {len(pending)} to do in {len(jobs)} processes"
    )
    for warning in short_teachers(pending):
        print(warning)
    if args.dry_run:
        for want in finished:
            print(f"# finished: {want.label}")
        for job in jobs:
            print(f"# {'; '.join(job.labels)}\n{job.command}")
        return 0
    teachers = {w.settings.teacher.path_t[0] for w in pending if not w.cell.alone}
    lacking = [path for path in teachers if published(path) is None and not Path(path).exists()]
    if lacking:
        raise UserError(
            f"no teacher at {', '.join(sorted(lacking))}: fetch it with bash scripts/teachers/fetch_teachers.sh, or "
            "train it with bash scripts/teachers/train_teachers.sh"
        )
    logs = Path(everything[0].settings.run.save_root) / "run_table" / table.name
    if args.executor == "local":
        import torch

        gpus = visible_gpus(torch.cuda.device_count(), os.environ)
        failed = run_local(jobs, logs, slots_of(gpus, args.per_gpu, args.jobs))
    else:
        cluster = "slurm" if args.executor == "slurm" else "local"
        runs = [Run(["train_student.py", *job.argv], Path.cwd()) for job in jobs]
        failed = len(submit(runs, logs / "submitit", cluster, not args.no_wait, **key_values(args.slurm)))
    if failed:
        print(f"{failed} of {len(jobs)} processes failed; run the same command to try them again", file=sys.stderr)
        return 1
    made = ["--root", everything[0].settings.run.save_root, "--published", args.table, "--pivot"]
    print(f"the table: {shlex.join(['python', 'scripts/make_table.py', *made])}")
    return 0


if __name__ == "__main__":
    run_script(main)
