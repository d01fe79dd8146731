"""The command line: one table of flags, one parser a script, and where each value came from.

Dashes and underscores are interchangeable in every flag (--path-t, --path_t); abbreviations work as argparse has them.
A method's own flags are its Config fields and exist only once --distill names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset import recipe
from distiller_zoo import method_dict, published_names
from distiller_zoo.base import Combined, CombinedConfig, Distiller
from helper.protocols import UserError
from helper.schedule import parse_decay_epochs
from helper.seeding import trial_seed
from models import model_dict


class _Unset:
    def __repr__(self) -> str:
        return "unset"


UNSET = _Unset()


@dataclass(frozen=True)
class Flag:
    """One flag of the common table.

    result: the value changes what is computed, so it belongs to a run's identity. named: it stands in the published
    run-name template already. default is what holds when neither user, model, method nor data set says otherwise.
    """

    names: tuple[str, ...]
    default: Any
    help: str
    type: Any = str
    choices: tuple[Any, ...] | None = None
    result: bool = False
    named: bool = False
    nargs: str | None = None

    @property
    def dest(self) -> str:
        return self.names[0].lstrip("-")


def _switch(names: tuple[str, ...], help: str, **kwargs: Any) -> Flag:
    return Flag(names, False, help, type=bool, **kwargs)


COMMON = (
    Flag(("--dataset",), "cifar100", "data set, see --list", result=True, named=True),
    Flag(("--data_folder",), "../data/", "where data sets lie"),
    Flag(("--image_size",), None, "side of the images of --dataset folder and digits (default 32)", int, result=True),
    Flag(("--val_fraction",), 0.0, "hold out this share of train, stratified, and evaluate on it", float, result=True),
    Flag(("--few_ratio",), 1.0, "train on this share of every class", float, result=True),
    Flag(("--batch_size",), 64, "global batch size", int, result=True),
    Flag(("--epochs",), 240, "epochs to train", int, result=True),
    Flag(
        ("--learning_rate",),
        0.05,
        "initial learning rate; 0.01 for mobile and shuffle nets unless given",
        float,
        result=True,
    ),
    Flag(
        ("--lr_decay_epochs",),
        "150,180,210",
        "epochs after which the rate is multiplied by --lr_decay_rate",
        result=True,
    ),
    Flag(("--lr_decay_rate",), 0.1, "factor of each decay", float, result=True),
    Flag(("--weight_decay",), 5e-4, "on all parameters, batch norm and biases included", float, result=True),
    Flag(("--momentum",), 0.9, "of SGD", float, result=True),
    Flag(("--accumulate",), 1, "micro-batches per optimiser step", int, result=True),
    Flag(("--trial", "-t"), "0", "name of this repetition", result=True, named=True),
    Flag(("--seed",), None, "random seed (default: the trial number, or crc32 of a word)", int, result=True),
    Flag(
        ("--precision",),
        "auto",
        "forward pass in bf16 or fp32; auto: bf16 where the hardware has it natively",
        choices=("auto", "bf16", "fp32"),
        result=True,
    ),
    _switch(("--deterministic",), "deterministic kernels; an error where an operation has none", result=True),
    Flag(("--max_steps",), None, "stop every epoch after this many steps (for trying things out)", int, result=True),
    Flag(("--gpu_id",), "0", "GPU to use; without CUDA, 0 means the CPU"),
    Flag(("--num_workers",), 8, "loader processes, for data that is not resident on the device", int),
    Flag(("--print_freq",), 200, "steps between progress lines in the log", int),
    Flag(("--save_root",), "./save", "root of runs and teachers"),
    Flag(("--resume",), "auto", "auto: continue what is there; or the path of a _last.pth"),
    _switch(("--overwrite",), "delete a run of this name first"),
    Flag(
        ("--tb_backend",), "tensorboard", "writer of event files", choices=("tensorboard", "tensorboard_logger", "none")
    ),
    Flag(("--dali",), None, "ImageNet loader through DALI", choices=("cpu", "gpu"), result=True, named=True),
    _switch(("--multiprocessing_distributed",), "one process per GPU of --gpu_id"),
    Flag(("--dist_url",), "tcp://127.0.0.1:23451", "rendezvous of --multiprocessing_distributed"),
    Flag(("--dist_backend",), None, "nccl or gloo (default: by device)", choices=("nccl", "gloo")),
    Flag(("--world_size",), None, "number of nodes", int),
    Flag(("--rank",), None, "rank of this node", int),
    _switch(("--use_lmdb",), "accepted for old scripts"),
    Flag(("--tb_freq",), None, "accepted for old scripts", int),
    Flag(("--save_freq",), None, "accepted for old scripts", int),
)

TEACHER = (Flag(("--model",), "resnet32x4", "network to train, see --list", result=True, named=True),)

STUDENT = (
    Flag(("--model_s",), "resnet8x4", "student network, see --list", result=True, named=True),
    Flag(("--path_t",), None, "checkpoint of the teacher"),
    Flag(("--model_t",), None, "teacher network, where neither the checkpoint nor its path tells"),
    Flag(("--distill",), "kd", "method, or several as kd+crd, see --list", result=True, named=True),
    Flag(
        ("--cls", "-c", "-r", "--gamma"),
        1.0,
        "weight of cross-entropy (default: the method's)",
        float,
        result=True,
        named=True,
    ),
    Flag(
        ("--div", "-d", "-a", "--alpha"),
        1.0,
        "weight of the logit KL (default: the method's)",
        float,
        result=True,
        named=True,
    ),
    Flag(
        ("--beta", "-b"), 0.0, "weight of the method's own term (default: the method's)", float, result=True, named=True
    ),
    Flag(("--kd_T",), 4.0, "temperature of the logit KL", float, result=True),
    Flag(
        ("--protocol",),
        "simkd",
        "default weights: simkd keeps cross-entropy and KL beside every method, authors takes each publication's own",
        choices=("simkd", "authors"),
        result=True,
    ),
    _switch(("--skip_validation",), "do not evaluate the teacher first"),
    Flag(("--init_epochs",), 30, "epochs of the first stage, for methods that have one", int, result=True),
)

# flags that do nothing unless the run is of the kind they are for
WITHOUT_EFFECT = ("use_lmdb", "tb_freq", "save_freq")


@dataclass
class Settings:
    """Resolved settings. Values read as attributes: settings.batch_size.

    sources: name -> "command line", "model recipe", "data set recipe", "method" or "default".
    method, config: class and configuration of the method. identity: what two runs must share to be the same run.
    """

    values: dict[str, Any]
    sources: dict[str, str]
    method: type[Distiller]
    config: Any
    flags: Mapping[str, Flag]
    method_flags: Mapping[str, Any]  # dest -> default, of the method's own settings
    command: list[str] = field(default_factory=list)
    without_effect: dict[str, str] = field(default_factory=dict)  # flag -> why

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def identity(self) -> dict[str, Any]:
        """Every value that changes what the run computes."""
        own = {k: self.values[k] for k in self.method_flags}
        return {k: self.values[k] for k, f in self.flags.items() if f.result} | own

    def off_default(self) -> dict[str, Any]:
        """Settings the user moved away from the default that are not part of the published run-name template."""
        chosen = {k for k, source in self.sources.items() if source == "command line"} - set(self.without_effect)
        moved = {
            k: self.values[k]
            for k, f in self.flags.items()
            if k in chosen and f.result and not f.named and self.values[k] != self._default(k)
        }
        if "seed" in moved and moved["seed"] == trial_seed(self.trial):
            del moved["seed"]
        own = {k: self.values[k] for k in self.method_flags if k in chosen and self.values[k] != self._default(k)}
        return moved | own

    def _default(self, name: str) -> Any:
        return self.values["_defaults"].get(name)

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in self.values.items() if not k.startswith("_")}


def _field_flag(method: str, f: dataclasses.Field) -> str:
    return f.metadata.get("flag") or f"--{method}_{f.name}"


def _own_fields(method: type[Distiller]) -> list[dataclasses.Field]:
    common = {f.name for f in dataclasses.fields(Distiller.Config)}
    return [f for f in dataclasses.fields(method.Config) if f.name not in common]


def normalised(argv: Sequence[str] | None) -> list[str]:
    """--path-t=x -> --path_t=x; values and single-dash flags stay as they are. None reads sys.argv."""
    argv = sys.argv[1:] if argv is None else argv
    out = []
    for i, token in enumerate(argv):
        if token == "--":
            return out + list(argv[i:])
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            token = "--" + name.replace("-", "_") + equals + value
        out.append(token)
    return out


def _spellings(method: type[Distiller]) -> list[tuple[str, ...]]:
    return [_flag_of_field(method.name, f)[0] for f in _own_fields(method)]


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


def _add(parser: argparse._ActionsContainer, names: Sequence[str], flag: Flag) -> None:
    kwargs: dict[str, Any] = {"dest": flag.dest, "help": flag.help, "default": UNSET}
    if flag.type is bool:
        parser.add_argument(*names, action="store_const", const=True, **kwargs)
        return
    if flag.default is not None and "default" not in flag.help:
        kwargs["help"] += f" (default {flag.default})"
    if flag.choices is None:
        kwargs["metavar"] = getattr(flag.type, "__name__", "value").upper() if flag.type is not str else "TEXT"
    parser.add_argument(*names, type=flag.type, choices=flag.choices, nargs=flag.nargs, **kwargs)


def _flag_of_field(method: str, f: dataclasses.Field) -> tuple[tuple[str, ...], Flag]:
    name, short = _field_flag(method, f), f.metadata.get("short")
    names = (name, short) if short else (name,)
    several = isinstance(f.default, tuple)  # of layer numbers
    kind, nargs = (int, "+") if several else (type(f.default), None)
    help, choices = f.metadata.get("help", ""), f.metadata.get("choices")
    return names, Flag((name,), f.default, help, kind, choices, result=True, nargs=nargs)


def _methods(name: str) -> list[type[Distiller]]:
    return [method_dict[part] for part in name.split("+")]


def _distill_of(argv: Sequence[str]) -> str:
    """The value of --distill or an abbreviation of it. A parser that knows nothing else, as one that knows the common
    flags alone would take a method's own flag for the abbreviation of one of them (--mode for --model_s)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--distill", *("--distill"[:n] for n in range(len("--disti"), len("--distill"))), default="kd")
    try:
        return parser.parse_known_args(argv)[0].distill
    except argparse.ArgumentError:  # no value: the full parser says so, with its own name and usage
        return "kd"


def parse(argv: Sequence[str] | None, *, teacher: bool) -> Settings:
    """Parse a script's command line. teacher: train_teacher.py's table rather than train_student.py's.

    argparse reports malformed input itself (exit code 2); everything else raises UserError.
    """
    argv = normalised(argv)
    table = (*TEACHER, *COMMON) if teacher else (*STUDENT, *COMMON)
    prog = "train_teacher.py" if teacher else "train_student.py"
    about = (
        "Train a network on labels alone."
        if teacher
        else ("Train a student network with a teacher. `--distill METHOD --help` adds the method's own flags.")
    )
    parser = _Parser(prog, description=about, epilog="Dashes and underscores are interchangeable in flags.")
    parser.add_argument("--list", action="store_true", help="list methods, models and data sets, and exit")
    for flag in table:
        _add(parser, flag.names, flag)

    if "--list" in argv:
        print(listing())
        raise SystemExit(0)
    distill = "vanilla" if teacher else _distill_of(argv)
    methods = _methods(distill)
    own: dict[str, list[tuple[type[Distiller], dataclasses.Field]]] = {}
    flags = {f.dest: f for f in table}
    for method in methods:
        group = parser.add_argument_group(f"flags of {method.name}")
        for f in _own_fields(method):
            names, flag = _flag_of_field(method.name, f)
            if flag.dest not in own:  # two methods of a combination may share a published flag (--feat_dim)
                flags[flag.dest] = flag
                _add(group, names, flag)
            own.setdefault(flag.dest, []).append((method, f))

    given = vars(parser.parse_args(argv))
    given.pop("list", None)
    return _resolve(given, flags, own, methods, distill, teacher, list(argv))


def _resolve(
    given: dict[str, Any],
    flags: Mapping[str, Flag],
    own: Mapping[str, Sequence[tuple[type[Distiller], dataclasses.Field]]],
    methods: Sequence[type[Distiller]],
    distill: str,
    teacher: bool,
    argv: list[str],
) -> Settings:
    values = {k: f.default for k, f in flags.items()}
    sources = dict.fromkeys(values, "default")

    def layer(updates: Mapping[str, Any], source: str) -> None:
        for k, v in updates.items():
            values[k], sources[k] = v, source

    chosen = {k: v for k, v in given.items() if v is not UNSET}
    name = chosen.get("dataset", values["dataset"])
    layer(recipe(name), "data set recipe")
    network = "model" if teacher else "model_s"
    spec = model_dict[chosen.get(network, values[network])]
    if spec.learning_rate is not None:
        layer({"learning_rate": spec.learning_rate}, "model recipe")
    if not teacher:
        layer(_method_weights(methods, chosen.get("protocol", values["protocol"])), "method")
    values["_defaults"] = dict(values)
    layer(chosen, "command line")
    if values["seed"] is None:
        values["seed"] = trial_seed(values["trial"])
    if not teacher:
        values["distill"] = "+".join(m.name for m in methods)
    values[network] = spec.name
    _check(values)
    config = _config(values, own, methods, teacher)
    method_flags = {k: users[0][1].default for k, users in own.items()}
    method = methods[0] if len(methods) == 1 else Combined
    settings = Settings(values, sources, method, config, flags, method_flags, argv)
    settings.without_effect = {k: "accepted for old scripts" for k in WITHOUT_EFFECT if sources[k] == "command line"}
    return settings


def _method_weights(methods: Sequence[type[Distiller]], protocol: str) -> dict[str, float]:
    """Weights of the method's own row. A combination takes cls = div = 1 unless a member says 0 to both."""
    rows = [
        {"cls": m.Config.cls, "div": m.Config.div, "beta": m.Config.beta, "kd_T": m.Config.kd_T}
        | (dict(m.Config.authors) if protocol == "authors" else {})
        for m in methods
    ]
    if len(rows) == 1:
        return rows[0]
    return {
        "cls": max(r["cls"] for r in rows),
        "div": max(r["div"] for r in rows),
        "beta": 1.0,
        "kd_T": rows[0]["kd_T"],
    }


def _config(
    values: Mapping[str, Any],
    own: Mapping[str, Sequence[tuple[type[Distiller], dataclasses.Field]]],
    methods: Sequence[type[Distiller]],
    teacher: bool,
) -> Any:
    def fields_of(method: type[Distiller]) -> dict[str, Any]:
        return {f.name: values[k] for k, users in own.items() for m, f in users if m is method}

    if teacher:
        return methods[0].Config(**fields_of(methods[0]))
    common = {k: values[k] for k in ("cls", "div", "kd_T")}
    if len(methods) == 1:
        return methods[0].Config(beta=values["beta"], **common, **fields_of(methods[0]))
    weights = {m.name: m.Config.beta * values["beta"] for m in methods}
    members = tuple((m, m.Config(beta=weights[m.name], **common, **fields_of(m))) for m in methods)
    config = CombinedConfig(beta=values["beta"], members=members, **common)
    Combined.check(config)
    return config


def _check(values: Mapping[str, Any]) -> None:
    parse_decay_epochs(values["lr_decay_epochs"])
    for name, low in (("batch_size", 1), ("epochs", 1), ("accumulate", 1), ("print_freq", 1), ("num_workers", 0)):
        if values[name] < low:
            raise UserError(f"--{name} {values[name]} must be at least {low}")
    for name in ("learning_rate", "lr_decay_rate"):
        if not values[name] > 0:
            raise UserError(f"--{name} {values[name]} must be above 0")
    for name in ("weight_decay", "momentum"):
        if values[name] < 0:
            raise UserError(f"--{name} {values[name]} must not be negative")
    if not 0 <= values["val_fraction"] < 1:
        raise UserError(f"--val_fraction {values['val_fraction']} must lie in [0, 1)")
    if not 0 < values["few_ratio"] <= 1:
        raise UserError(f"--few_ratio {values['few_ratio']} must lie in (0, 1]")
    if values["max_steps"] is not None and values["max_steps"] < 1:
        raise UserError(f"--max_steps {values['max_steps']} must be at least 1")
    if any(c in values["trial"] for c in "/\\") or not values["trial"]:
        raise UserError(f"--trial '{values['trial']}' becomes part of a folder name and must be a plain word or number")
    if not 0 <= values["seed"] < 2**63:
        raise UserError(f"the seed {values['seed']} (--seed, else the number of --trial) must lie in [0, 2^63)")
    if values.get("kd_T", 1.0) <= 0:
        raise UserError(f"--kd_T {values['kd_T']} must be above 0")


def published_name(distill: str) -> str:
    """The spelling run folders use: fitnet -> hint, kd+at -> kd+attention."""
    return "+".join(published_names.get(part, part) for part in distill.split("+"))


def listing() -> str:
    """Methods, models and data sets, with what each needs; the first docstring line names a method's paper."""
    from dataset import dataset_dict

    lines = ["Methods (--distill):"]
    for name in method_dict:
        module = sys.modules[method_dict[name].__module__]
        other = [a for a, n in method_dict.aliases.items() if n == name]
        spelled = f"{name} ({', '.join(other)})" if other else name
        lines.append(f"  {spelled:24s} {(module.__doc__ or '').strip().splitlines()[0]}")
    lines.append("Models (--model, --model_s):")
    for name in model_dict:
        spec = model_dict[name]
        lines.append(f"  {name:24s} taps {', '.join(spec.taps)}")
    lines.append(f"Data sets (--dataset): {', '.join(dataset_dict)}")
    return "\n".join(lines)
