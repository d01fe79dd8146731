"""The command line: one table of flags, one parser per script, and the source of each value.

Dashes and underscores are interchangeable in every flag (--path-t, --path_t); abbreviations work as in argparse.
A method's own flags are its Config fields and exist only if --distill names the method.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.option import UNSET, Flag, add_flag, add_groups, at_least, not_negative, read, refuse_absurd
from core.protocols import UserError
from dataset import dataset_dict, recipe
from distiller_zoo import method_dict
from distiller_zoo._combined import Combined
from distiller_zoo.base import Distiller
from helper.machine.seeding import trial_seed
from helper.options.config_file import FileSettings, read_file, text
from helper.options.method_flags import (
    default_weights,
    flags_of,
    method_config,
    methods_named,
    modern,
    share_of_weight_flag,
    term_weights,
    weights_from_flag,
)
from helper.options.old_flags import Parser
from helper.options.plugins import load_plugins
from helper.options.quick import add_help, normalised
from helper.options.settings import (
    COMMON,
    Configs,
    Settings,
    TrainStudentConfigs,
    TrainTeacherConfigs,
    common_flags,
    given_by_user,
)
from helper.runs.folder import plain_word
from models import model_dict

EPILOG = (
    "Dashes and underscores are interchangeable in flags. Defaults that depend on the data set are those of cifar100; "
    "imagenet, videos and action recordings have their own."
)


class _Parser(Parser):
    """For a flag of another method, the error names that method."""

    def hint(self, token: str) -> str:
        owners = [m for m in method_dict if any(token in flag.names for flag in flags_of(method_dict[m]))]
        if owners:
            return f" ({token} belongs to --distill {' and '.join(owners)})"
        return super().hint(token)


def _named_before(argv: Sequence[str], flag: str, shortest: int, nargs: str | None = None) -> Any:
    """The value of a flag that decides which flags exist, or of its abbreviation of at least `shortest` characters.

    Parsed without all other flags: a parser of the common flags would take a method's own flag for an abbreviation of
    one of them (--mode for --model_s).
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(flag, *(flag[:n] for n in range(shortest, len(flag))), dest="value", nargs=nargs)
    try:
        return parser.parse_known_args(argv)[0].value
    except argparse.ArgumentError:  # no value: the full parser reports it, with its name and usage
        return None


def script_parser(kind: type[Configs]) -> _Parser:
    """The parser of a script, without the flags of a method."""
    teacher = kind is TrainTeacherConfigs
    prog = "train_teacher.py" if teacher else "train_student.py"
    about = (
        "Train a network on labels; with --distill, also its auxiliary heads."
        if teacher
        else ("Train a student network with a teacher. `--distill METHOD --help` adds the method's own flags.")
    )
    parser = _Parser(prog, description=about, epilog=EPILOG, add_help=False)
    add_help(parser, COMMON)
    parser.add_argument(
        "--list",
        nargs="?",
        const="all",
        choices=("all", "methods", "models", "data"),
        help="list methods, models and data sets, then exit",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="read settings from a TOML, JSON or YAML file, or a run's args.json"
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the settings as a file for --config, then exit"
    )
    add_groups(parser, kind)
    return parser


def parse(argv: Sequence[str] | None, *, teacher: bool) -> Settings:
    """The settings of the first student of the first trial; see parse_students()."""
    return parse_students(argv, teacher=teacher)[0][0]


@dataclass(frozen=True)
class _Given:
    """The settings of a command line and its --config. values: flag -> value or UNSET. own: the flags of methods."""

    values: dict[str, Any]
    flags: dict[str, Flag]
    own: Sequence[str]
    distills: Sequence[str]
    file: FileSettings
    from_file: Collection[str]

    def trials(self) -> list[str]:
        """The trials of --trials, counted from --trial."""
        first, count = (None if self.values[k] is UNSET else self.values[k] for k in ("trial", "trials"))
        first = self.flags["trial"].default if first is None else first
        if count is None or count == 1:
            return [first]
        at_least(1, 10**4)("--trials", count)
        if not first.isdecimal() or self.values["seed"] is not UNSET:
            raise UserError(
                "--trials counts from --trial and uses each number as seed: give --trial a number and leave --seed out"
            )
        return [str(int(first) + k) for k in range(count)]

    def lanes(self) -> list[tuple[str | None, str]]:
        """(student, method) of every student to train together."""
        named = self.values.get("model_s", UNSET)
        students = [None] if named is UNSET else _listed(named, "--model_s")
        return [(student, distill) for student in students for distill in self.distills]


def parse_students(argv: Sequence[str] | None, *, teacher: bool) -> list[list[Settings]]:
    """Parse a script's command line: one list of settings per trial, with one entry per student to train together.

    teacher: whether the script is train_teacher.py instead of train_student.py. argparse reports malformed input itself
    (exit code 2); all other errors are UserErrors.
    """
    argv = normalised(argv)
    given = _read(argv, TrainTeacherConfigs if teacher else TrainStudentConfigs)
    print_config = given.values.pop("print_config")
    lanes = given.lanes()
    if len(lanes) > 1:
        methods = list(dict.fromkeys(m for distill in given.distills for m in methods_named(distill)))
        _check_lanes(given.values, given.distills, methods)
    if given.values["name"] is not UNSET and (count := len(lanes) * len(given.trials())) > 1:
        raise UserError(f"--name names one run, but this command trains {count}: leave it out")
    trials = [
        [_settings(given, trial, student, distill, argv) for student, distill in lanes] for trial in given.trials()
    ]
    students = [(settings.model, settings.distill) for settings in trials[0]]
    if len(set(students)) < len(students):  # two spellings of one name
        model, distill = max(students, key=students.count)
        raise UserError(f"--model_s and --distill list {model} with {distill} twice: list distinct students")
    if print_config:
        print(_config_file_text(given, trials), end="")
        raise SystemExit(0)
    return trials


def _read(argv: Sequence[str], kind: type[Configs]) -> _Given:
    """Command line and file as flags and values; the command line wins."""
    parser = script_parser(kind)
    file = read_file(_named_before(argv, "--config", len("--con")), parser.prog)
    plugins = [p for p in file.text("plugin").split(",") if p]
    load_plugins(_named_before(argv, "--plugin", 4, "*") or plugins)
    decays = _named_before(argv, "--lr_decay_epochs", len("--lr_decay_e"), "+") or ()
    if len(decays) > 1 and all(word.strip(",").isdecimal() for word in decays):
        joined = ",".join(word.strip(",") for word in decays)
        raise UserError(f"--lr_decay_epochs {' '.join(decays)}: separate the epochs by commas only: {joined}")
    flags = {f.dest: f for f in common_flags(kind)}
    named = _named_before(argv, "--distill", len("--disti"))
    if named is None:
        named = file.text("distill") if "distill" in file.given else flags["distill"].default
    distills = _listed(named, "--distill")
    methods = list(dict.fromkeys(m for distill in distills for m in methods_named(distill)))
    if kind is TrainTeacherConfigs and (len(methods) != 1 or methods[0].teacher_mode != "absent"):
        raise UserError(
            f"--distill {','.join(distills)} needs a teacher, but train_teacher.py has none: use train_student.py"
        )
    own: list[str] = []
    for method in methods:
        group = parser.add_argument_group(f"flags of {method.name}")
        for flag in flags_of(method):
            if flag.dest not in own:  # two methods of a combination may share a published flag (--feat_dim)
                flags[flag.dest] = flag
                add_flag(group, flag)
                own.append(flag.dest)
    values = vars(parser.parse_args(argv))
    if listed := values.pop("list"):
        from helper.options.listing import show  # imports every method

        show(listed)
        raise SystemExit(0)
    del values["config"]
    others = (method_dict[name] for name in method_dict if method_dict[name] not in methods) if file.given else ()
    typed = file.typed(flags, [flag.dest for method in others for flag in flags_of(method)])
    from_file = {k: v for k, v in typed.items() if values[k] is UNSET}
    return _Given(values | from_file, flags, own, distills, file, from_file.keys())


def _settings(given: _Given, trial: str, student: str | None, distill: str, argv: Sequence[str]) -> Settings:
    """The settings of one student of one trial."""
    mine, several = methods_named(distill), len(given.lanes()) > 1
    used = {flag.dest for m in mine for flag in flags_of(m)}
    own, others = [k for k in given.own if k in used], set(given.own) - used
    chosen = {k: v for k, v in given.values.items() if k not in others} | {"trial": trial}
    if "model_s" in given.flags:
        chosen |= {"distill": distill} | ({"model_s": student} if student else {})
        if several:
            chosen["weight"] = share_of_weight_flag(given.values["weight"], mine)
    flags = {k: f for k, f in given.flags.items() if k not in others}
    label = f"{student} {distill}" if len({s for s, _ in given.lanes()}) > 1 else distill
    resolved = _resolve(chosen, flags, own, mine, given)
    return dataclasses.replace(resolved, command=list(argv), label=label)


def _config_file_text(given: _Given, trials: Sequence[Sequence[Settings]]) -> str:
    """The output of --print_config: the given settings, and all others that the students of all trials share."""
    every = [settings for lanes in trials for settings in lanes]
    first = every[0]
    typed = {k: v for k, v in given.values.items() if v is not UNSET}
    shared = {
        k: v
        for k, v in first.as_dict().items()
        if k not in ("seed", "trial")
        and all(s.as_dict().get(k) == v for s in every)
        and not (len(given.lanes()) > 1 and first.sources.get(k) == "method")
    }
    sources = dict(first.sources) | {k: "file" if k in given.from_file else "command line" for k in typed}
    return text({**shared, **typed}, sources, f"{script_parser(type(first.configs)).prog} --config FILE repeats this")


def flags_of_run(settings: Settings) -> dict[str, Flag]:
    """Flag name -> flag, for a run's script and method."""
    own = [flag for m in methods_named(settings.distill) for flag in flags_of(m)]
    return {f.dest: f for f in (*common_flags(type(settings.configs)), *own)}


def _listed(text: str, flag: str) -> list[str]:
    """'kd,at' -> ['kd', 'at']."""
    if not text.strip():
        raise UserError(f"{flag} is empty: give a value or leave the flag out")
    names = text.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{flag} '{text}' must list distinct names, separated by single commas")
    return names


def _check_lanes(given: Mapping[str, Any], distills: Sequence[str], methods: Sequence[type[Distiller]]) -> None:
    if given["beta"] is not UNSET and len(distills) > 1:
        raise UserError(
            "-b/--beta would give every method the same weight: use --weight, such as --weight "
            f"{methods[-1].name}={given['beta']:g}"
        )
    names = {"cls", "div", *(m.name for m in methods)}
    if given["weight"] is not UNSET and (stray := term_weights(given["weight"]).keys() - names):
        raise UserError(f"--weight names {', '.join(sorted(stray))}, but the terms are {', '.join(sorted(names))}")


def _resolve(
    given: Mapping[str, Any],
    flags: Mapping[str, Flag],
    own: Sequence[str],
    methods: Sequence[type[Distiller]],
    source: _Given,
) -> Settings:
    kind: type[TrainStudentConfigs | TrainTeacherConfigs]
    kind = TrainStudentConfigs if "model_s" in flags else TrainTeacherConfigs
    values = {k: f.default for k, f in flags.items()}
    sources = dict.fromkeys(values, "default")

    def layer(updates: Mapping[str, Any], source: str) -> None:
        for k, v in updates.items():
            values[k], sources[k] = v, source

    teacher = kind is TrainTeacherConfigs
    chosen = {k: v for k, v in given.items() if v is not UNSET}
    chosen = {k: tuple(v) if isinstance(values.get(k), tuple) else v for k, v in chosen.items()}
    name = chosen.get("dataset", values["dataset"])
    layer(recipe(name), "data set recipe")
    network = "model" if teacher else "model_s"
    spec = model_dict[chosen.get(network, values[network])]
    if spec.published.learning_rate is not None:
        layer({"learning_rate": spec.published.learning_rate}, "model recipe")
    if chosen.get("protocol") == "modern":
        unlabelled = chosen.get("unlabelled") is not None or dataset_dict.resolve(name) == "unlabelled"
        layer(modern(name, unlabelled), "protocol")
    if not teacher:
        layer(default_weights(methods, chosen.get("protocol", values["protocol"])), "method")
    defaults = dict(values)
    recorded = source.file.recorded
    if all(recorded.get(k) == chosen.get(k, values.get(k)) for k in ("dataset", network, "distill", "protocol")):
        layer(source.file.unlike(values), "file")
    layer(chosen, "command line")
    sources |= dict.fromkeys(chosen.keys() & source.from_file, "file")
    plain_word("--trial", values["trial"])
    if values["seed"] is None:
        values["seed"] = trial_seed(values["trial"])
    if not teacher:
        layer(weights_from_flag(values, methods), "command line")
        for term, weight in term_weights(values["weight"]).items():
            not_negative(f"--weight {term}", weight)
    values["distill"] = "+".join(m.name for m in methods)
    values[network], values["dataset"] = spec.name, dataset_dict.resolve(name)
    configs = read(kind, values)
    config = method_config(values, methods, teacher)
    refuse_absurd(flags.values(), values)
    method = methods[0] if len(methods) == 1 else Combined
    by_user = given_by_user(values, defaults, sources)
    without_effect = {} if teacher else idle_logit_flags(values, by_user, config, methods)
    return Settings(
        configs, method, config, {k: values[k] for k in own}, defaults, sources, without_effect=without_effect
    )


def idle_logit_flags(
    values: Mapping[str, Any], by_user: Collection[str], config: Any, methods: Sequence[type[Distiller]]
) -> dict[str, str]:
    """Flag -> reason, for flags of logit losses that have no effect with these methods."""
    why: dict[str, str] = {}
    if not config.cls and "class_weight" in by_user:
        why["class_weight"] = "cross-entropy has weight 0"
    if not config.div and not any(m.reads_logits for m in methods):
        reason = f"{values['distill']} compares no logits with -d 0"
        why |= {flag: reason for flag in ("logit_stand", "norm_kd", "frame_logits") if values[flag]}
    if values["ea_weight"] and not (config.div or any(m.weighs_rows for m in methods)):
        why["ea_weight"] = f"{values['distill']} has no logit loss per sample with -d 0"
    if not values["ea_weight"]:
        given = [flag for flag in ("ea_T", "ea_as_published") if flag in by_user]
        why |= dict.fromkeys(given, "--ea_weight is off")
    return why
