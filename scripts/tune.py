#!/usr/bin/env python3
"""Search a method's settings without looking at the test set.

    python scripts/tune.py --search beta=0.1:10:log kd_T=1:8 --trials 20 -- --path_t T.pth --distill dkd --epochs 60 \\
        --lr_decay_epochs 38,45,53

Each trial trains on all but a stratified slice of the training set (--val_fraction, default 0.1) and is evaluated by
the last epoch on that slice. NAME=LOW:HIGH[:log] draws numbers (whole ones where both ends are whole and the flag is
one), NAME=A,B,C chooses. Everything after -- goes to train_student.py. A trial that diverges or is refused counts as
failed, and the search continues. The study is stored in a folder (--study), so that an interrupted search resumes. The
search ends with the command of the final training on the whole training set.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import atomic_write_text, make_folder, read_json, remember
from core.option import checked, share_above_0, whole
from core.packages import needed
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.machine.stopper import Interrupted
from helper.options.parse import flags_of_run, normalised, parse_students
from helper.options.settings import Settings
from helper.tables.jobs import result_folder, start

INTERRUPTED = (130, 143)  # exit codes: Ctrl-C, SIGTERM
HOPELESS = 3  # trials that fail before any completes: the mistake is not in the values
SHORT = {"beta": "-b", "cls": "-c", "div": "-d"}


class FailedTrial(UserError):  # noqa: N818 (counted, and the search continues)
    """A training ended without a result: it diverged, or was refused. The message says how."""


@dataclass(frozen=True)
class Axis:
    """One setting that is searched: a range of numbers, or choices."""

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return SHORT.get(self.name, f"--{self.name}")

    def draw(self, trial: Any) -> str:
        """trial: optuna's. The value as the command line has it."""
        if self.choices:
            return str(trial.suggest_categorical(self.name, self.choices))
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(self.name, self.low, self.high, log=self.log):.4g}"


def read_axis(text: str, settings: Settings) -> Axis:
    """'beta=0.1:10:log' or 'hint_layer=1,2'. UserError where it is neither, or where the method has no such flag."""
    name, equals, values = text.partition("=")
    name = name.lstrip("-").replace("-", "_")
    flags = flags_of_run(settings)
    if name not in flags:
        raise UserError(f"--search {text}: --distill {settings.distill} has no flag --{name}; see its --help")
    if "," in values:
        return Axis(name, choices=tuple(values.split(",")))
    parts = values.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
    except (ValueError, IndexError):
        raise UserError(f"--search {text} must have the form NAME=LOW:HIGH[:log] or NAME=A,B,C") from None
    log = parts[2:] == ["log"]
    if not -math.inf < low < high < math.inf or (log and low <= 0) or (parts[2:] and not log):
        raise UserError(f"--search {text}: LOW must be below HIGH, and above 0 for :log")
    return Axis(name, low, high, log, flags[name].type is int)


def trained(argv: Sequence[str], log: Path) -> float:
    """Train, and return the accuracy of the last epoch on the held-out slice. Raises FailedTrial if there is none."""
    process = start(argv, log)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    lines = log.read_text(errors="replace").strip().splitlines()
    if code < 0 or code in INTERRUPTED:
        raise UserError(f"a trial was stopped (exit code {code}); run the same command to resume")
    if code:
        raise FailedTrial(f"exit code {code}: {lines[-1] if lines else 'nothing was logged'} (log {log})")
    folder = next(filter(None, map(result_folder, reversed(lines))), None)
    if folder is None:
        raise UserError(f"a trial wrote no result (log {log}): leave --dry_run out, if it was given")
    parameters = read_json(Path(folder) / "parameters.json", {"last": dict}, "delete its folder")
    if parameters["evaluated_on"] == "test":
        raise UserError(
            "this data set holds out no slice, so the search would use the test set: choose another --dataset"
        )
    return float(parameters["last"]["test_acc"])


def search(
    axes: Sequence[Axis], given: Sequence[str], args: argparse.Namespace, train: Callable[[Sequence[str], Path], float]
) -> str:
    """Run the trials that are missing in the study; the command of the best one. train: as trained()."""
    optuna = needed("optuna", "tuning")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # of a failed trial it would show our traceback
    make_folder(args.study)
    study = optuna.create_study(
        study_name="tune", storage=f"sqlite:///{args.study / 'study.db'}", direction="maximize", load_if_exists=True
    )
    # a seed of its own after an interruption: the same one would draw the same values again
    study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(study.trials))
    record = args.study / "search.json"
    described = {"given": list(given), "search": args.search, "val_fraction": args.val_fraction}
    if record.exists() and read_json(record, {}, "delete it, or choose another --study") != described:
        raise UserError(f"{args.study} holds another search: choose another --study, or delete it")
    remember(described, record)

    def ended() -> tuple[list[Any], list[Any]]:
        """(trials that completed, trials that failed)."""
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
        complete, failed = ([t for t in study.trials if t.state == state] for state in states)
        return complete, [t for t in failed if "failure" in t.user_attrs]  # one that was interrupted has none

    def objective(trial: Any) -> float:
        values = [token for axis in axes for token in (axis.flag, axis.draw(trial))]
        held_out = ["--val_fraction", f"{args.val_fraction:g}", "--save_root", str(args.study / "runs")]
        try:
            accuracy = train([*given, *values, *held_out], args.study / f"trial_{trial.number:03d}.log")
        except FailedTrial as error:
            print(f"trial {trial.number}: {' '.join(values)}: failed, {error}", flush=True)
            trial.set_user_attr("failure", str(error))
            complete, failed = ended()
            if not complete and len(failed) + 1 >= HOPELESS:
                raise UserError(f"the first {HOPELESS} trials failed, the last with {error}") from error
            raise
        trial.set_user_attr("values", values)
        print(f"trial {trial.number}: {' '.join(values)}: {accuracy:.2f} on the held-out slice", flush=True)
        return accuracy

    missing = args.trials - sum(map(len, ended()))
    if missing > 0:
        study.optimize(objective, n_trials=missing, catch=(FailedTrial,))
    complete, failed = ended()
    if not complete:
        raise UserError(f"all {len(failed)} trials failed, the last with {failed[-1].user_attrs['failure']}")
    best = study.best_trial
    command = shlex.join(["python", "train_student.py", *given, *best.user_attrs["values"]])
    text = (
        "#!/usr/bin/env bash\n"
        f"# The best of {len(complete)} trials{f' ({len(failed)} more failed)' if failed else ''}: {best.value:.2f} on "
        f"{args.val_fraction:g} of the training set, held out. No test image was looked at.\n"
        f"# Searched: {' '.join(args.search)}\n{command}\n"
    )
    atomic_write_text(args.study / "best.sh", text)
    print(f"best: {best.value:.2f}; written to {args.study / 'best.sh'}\n{command}")
    return command


def main(argv: Sequence[str] | None = None, train: Callable[[Sequence[str], Path], float] = trained) -> str:
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    argv, given = argv[:cut], argv[cut + 1 :]
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--search", nargs="+", required=True, help="NAME=LOW:HIGH[:log] or NAME=A,B,C", metavar="SETTING=VALUES")
    add("--trials", **whole(1), default=20, help="number of trials in total, including failed and earlier ones")
    add(
        "--val_fraction",
        type=float,
        action=checked(share_above_0),
        default=0.1,
        help="held-out share of the training set",
    )
    add("--study", type=Path, default=Path("save/tune"), help="folder of the search", metavar="FOLDER")
    add("--seed", **whole(0, 2**32 - 1), default=0, help="random seed of the search")
    args = parser.parse_args(normalised(argv))
    if args.val_fraction == 1:
        raise UserError("--val_fraction 1 leaves nothing to train on: give less")
    for name, instead in (("val_fraction", "give it before --"), ("save_root", "use --study")):
        if any(token.split("=")[0].replace("-", "_").lstrip("_") == name for token in given):
            raise UserError(f"--{name} is the search's own: {instead}")
    students = sum(parse_students(given, teacher=False), [])
    if len(students) > 1:
        raise UserError("a search is for one student: one --distill, one --model_s, and no --trials after --")
    (settings,) = students
    return search([read_axis(text, settings) for text in args.search], given, args, train)


def program(argv: Sequence[str] | None = None) -> None:
    try:
        main(argv)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command continues", 130) from None


if __name__ == "__main__":
    run_script(program)
