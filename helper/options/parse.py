"""The command line: one table of flags, one parser a script, and where each value came from.

Dashes and underscores are interchangeable in every flag (--path-t, --path_t); abbreviations work as argparse has them.
A method's own flags are its Config fields and exist only once --distill names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from core.option import UNSET, Flag, add_flag, add_groups, not_negative, read
from core.protocols import UserError
from dataset import recipe
from distiller_zoo import method_dict
from distiller_zoo._combined import Combined
from distiller_zoo.base import Distiller
from helper.machine.seeding import trial_seed
from helper.options.method_flags import (
    MODERN,
    _config,
    _flag_of_field,
    _method_weights,
    _methods,
    _named_weights,
    _own_fields,
    _spellings,
    _weights_of,
    term_weights,
)
from helper.options.plugins import load_plugins
from helper.options.settings import Configs, Settings, StudentConfigs, TeacherConfigs, common_flags
from helper.runs.folder import WITHOUT_EFFECT, plain_word
from models import model_dict

EPILOG = (
    "Dashes and underscores are interchangeable in flags. Defaults that go by data set are those of cifar100; "
    "imagenet, videos and action recordings bring a recipe of their own."
)


def normalised(argv: Sequence[str] | None) -> list[str]:
    """--path-t=x -> --path_t=x; values and single-dash flags stay as they are. None reads sys.argv."""
    argv = sys.argv[1:] if argv is None else argv
    out: list[str] = []
    for i, token in enumerate(argv):
        if token == "--":
            return out + list(argv[i:])
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            token = "--" + name.replace("-", "_") + equals + value
        out.append(token)
    return out


class _Parser(argparse.ArgumentParser):
    """argparse, except that a flag of another method is answered with that method's name."""

    def error(self, message: str) -> Any:
        kind, _, rest = message.partition(": ")
        tokens = rest.split() if kind == "unrecognized arguments" else rest.split()[:1] * (kind == "ambiguous option")
        for token in (t.split("=")[0] for t in tokens if t.startswith("-")):
            owners = [m for m in method_dict if any(token in names for names in _spellings(method_dict[m]))]
            if owners:
                message += f" ({token} belongs to --distill {' and '.join(owners)})"
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")


def _named_before(argv: Sequence[str], flag: str, shortest: int, nargs: str | None = None) -> Any:
    """The value of a flag that decides which flags there are, or of an abbreviation of at least `shortest` characters.

    A parser that knows nothing else, as one that knows the common flags alone would take a method's own flag for the
    abbreviation of one of them (--mode for --model_s).
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(flag, *(flag[:n] for n in range(shortest, len(flag))), dest="value", nargs=nargs)
    try:
        return parser.parse_known_args(argv)[0].value
    except argparse.ArgumentError:  # no value: the full parser says so, with its own name and usage
        return None


def _parser(kind: type[Configs]) -> _Parser:
    """The parser of a script, without the flags of a method."""
    teacher = kind is TeacherConfigs
    prog = "train_teacher.py" if teacher else "train_student.py"
    about = (
        "Train a network on labels alone, with --distill on auxiliary heads too."
        if teacher
        else ("Train a student network with a teacher. `--distill METHOD --help` adds the method's own flags.")
    )
    parser = _Parser(prog, description=about, epilog=EPILOG)
    parser.add_argument(
        "--list",
        nargs="?",
        const="all",
        choices=("all", "methods", "models", "data"),
        help="list methods, models and data sets, and exit",
    )
    add_groups(parser, kind)
    return parser


def parse(argv: Sequence[str] | None, *, teacher: bool) -> Settings:
    """The settings of the first student of the first trial; see parse_students()."""
    return parse_students(argv, teacher=teacher)[0][0]


def parse_students(argv: Sequence[str] | None, *, teacher: bool) -> list[list[Settings]]:
    """Parse a script's command line: one list of settings per trial, with one entry per student to train together.

    teacher: train_teacher.py's table rather than train_student.py's. argparse reports malformed input itself (exit
    code 2); everything else raises UserError.
    """
    argv = normalised(argv)
    load_plugins(_named_before(argv, "--plugin", 4, "*") or ())
    kind: type[Configs] = TeacherConfigs if teacher else StudentConfigs
    parser = _parser(kind)
    decays = _named_before(argv, "--lr_decay_epochs", len("--lr_decay_e"), "+") or ()
    if len(decays) > 1 and all(word.strip(",").isdecimal() for word in decays):
        joined = ",".join(word.strip(",") for word in decays)
        raise UserError(f"--lr_decay_epochs {' '.join(decays)}: separate the epochs by commas alone, as {joined}")
    named = _named_before(argv, "--distill", len("--disti"))
    flags = {f.dest: f for f in common_flags(kind)}
    distills = _listed(named or flags["distill"].default, "--distill")
    methods = list(dict.fromkeys(m for distill in distills for m in _methods(distill)))
    if teacher and (len(methods) != 1 or methods[0].teacher_mode != "absent"):
        raise UserError(f"--distill {','.join(distills)} is no way to train a teacher alone: use train_student.py")
    own: dict[str, list[tuple[type[Distiller], dataclasses.Field]]] = {}
    for method in methods:
        group = parser.add_argument_group(f"flags of {method.name}")
        for f in _own_fields(method):
            flag = _flag_of_field(method.name, f)
            if flag.dest not in own:  # two methods of a combination may share a published flag (--feat_dim)
                flags[flag.dest] = flag
                add_flag(group, flag)
            own.setdefault(flag.dest, []).append((method, f))

    given = vars(parser.parse_args(argv))
    if listed := given.pop("list"):
        from helper.options.listing import show  # imports every method

        show(listed)
        raise SystemExit(0)
    students = [None] if teacher or given["model_s"] is UNSET else _listed(given["model_s"], "--model_s")
    lanes = [(student, distill) for student in students for distill in distills]
    if len(lanes) > 1:
        _check_lanes(given, distills, methods)
    trials: list[list[Settings]] = []
    for trial in _trials(given, flags["trial"].default):
        trials.append([])
        for student, distill in lanes:
            mine = _methods(distill)
            used = {k: [(m, f) for m, f in users if m in mine] for k, users in own.items()}
            others = {k for k, users in used.items() if not users}
            chosen = {k: v for k, v in given.items() if k not in others} | {"trial": trial}
            if not teacher:
                chosen |= {"distill": distill} | ({"model_s": student} if student else {})
                if len(lanes) > 1:
                    chosen["weight"] = _weights_of(given["weight"], mine)
            label = f"{student} {distill}" if len(students) > 1 else distill
            resolved = _resolve(
                chosen,
                {k: f for k, f in flags.items() if k not in others},
                {k: users for k, users in used.items() if users},
                mine,
                kind,
            )
            trials[-1].append(dataclasses.replace(resolved, command=list(argv), label=label))
    return trials


def flags_of_run(settings: Settings) -> dict[str, Flag]:
    """Flag name -> flag, of a run's script and its method."""
    methods = _methods(settings.distill)
    own = [_flag_of_field(m.name, f) for m in methods for f in _own_fields(m)]
    return {f.dest: f for f in (*common_flags(type(settings.configs)), *own)}


def _listed(text: str, flag: str) -> list[str]:
    """'kd,at' -> ['kd', 'at']."""
    names = text.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{flag} '{text}' must list different names, separated by single commas")
    return names


def _trials(given: Mapping[str, Any], default: str) -> list[str]:
    """--trials 3 counts on from --trial."""
    first, count = (None if given[k] is UNSET else given[k] for k in ("trial", "trials"))
    first = default if first is None else first
    if count is None or count == 1:
        return [first]
    if count < 1:
        raise UserError(f"--trials {count} must be at least 1")
    if not first.isdecimal() or given["seed"] is not UNSET:
        raise UserError(
            "--trials counts on from --trial and seeds each trial with its number: give --trial a number "
            "and leave --seed out"
        )
    return [str(int(first) + k) for k in range(count)]


def _check_lanes(given: Mapping[str, Any], distills: Sequence[str], methods: Sequence[type[Distiller]]) -> None:
    if given["beta"] is not UNSET and len(distills) > 1:
        raise UserError(
            f"-b/--beta would weigh every method alike: name them, as in --weight {methods[-1].name}={given['beta']:g}"
        )
    names = {"cls", "div", *(m.name for m in methods)}
    if given["weight"] is not UNSET and (stray := term_weights(given["weight"]).keys() - names):
        raise UserError(f"--weight names {', '.join(sorted(stray))}, the terms are {', '.join(sorted(names))}")


def _resolve(
    given: dict[str, Any],
    flags: Mapping[str, Flag],
    own: Mapping[str, Sequence[tuple[type[Distiller], dataclasses.Field]]],
    methods: Sequence[type[Distiller]],
    kind: type[Configs],
) -> Settings:
    values = {k: f.default for k, f in flags.items()}
    sources = dict.fromkeys(values, "default")

    def layer(updates: Mapping[str, Any], source: str) -> None:
        for k, v in updates.items():
            values[k], sources[k] = v, source

    teacher = kind is TeacherConfigs
    chosen = {k: v for k, v in given.items() if v is not UNSET}
    chosen = {k: tuple(v) if isinstance(values.get(k), tuple) else v for k, v in chosen.items()}
    name = chosen.get("dataset", values["dataset"])
    layer(recipe(name), "data set recipe")
    network = "model" if teacher else "model_s"
    spec = model_dict[chosen.get(network, values[network])]
    if spec.learning_rate is not None:
        layer({"learning_rate": spec.learning_rate}, "model recipe")
    if chosen.get("protocol") == "modern":
        layer(MODERN, "protocol")
    if not teacher:
        layer(_method_weights(methods, chosen.get("protocol", values["protocol"])), "method")
    defaults = dict(values)
    layer(chosen, "command line")
    plain_word("--trial", values["trial"])
    if values["seed"] is None:
        values["seed"] = trial_seed(values["trial"])
    if not teacher:
        layer(_named_weights(values, methods), "command line")
        for term, weight in term_weights(values["weight"]).items():
            not_negative(f"--weight {term}", weight)
    values["distill"] = "+".join(m.name for m in methods)
    values[network] = spec.name
    configs = read(kind, values)
    config = _config(values, own, methods, teacher)
    method = methods[0] if len(methods) == 1 else Combined
    without_effect = {k: "accepted for old scripts" for k in WITHOUT_EFFECT if sources[k] == "command line"}
    if not teacher:
        without_effect |= idle_logit_flags(values, sources, config, methods)
    return Settings(
        configs, method, config, {k: values[k] for k in own}, defaults, sources, without_effect=without_effect
    )


def idle_logit_flags(
    values: Mapping[str, Any], sources: Mapping[str, str], config: Any, methods: Sequence[type[Distiller]]
) -> dict[str, str]:
    """Flag -> why, of the flags about logit losses that do nothing beside these methods."""
    why: dict[str, str] = {}
    if not config.div and not any(m.reads_logits for m in methods):
        reason = f"{values['distill']} compares no logits with -d 0"
        why |= {flag: reason for flag in ("logit_stand", "norm_kd", "frame_logits") if values[flag]}
    if values["ea_weight"] and not (config.div or any(m.weighs_rows for m in methods)):
        why["ea_weight"] = f"{values['distill']} has no logit loss per sample with -d 0"
    if not values["ea_weight"]:
        given = [flag for flag in ("ea_T", "ea_as_published") if sources[flag] == "command line"]
        why |= dict.fromkeys(given, "--ea_weight is off")
    return why
