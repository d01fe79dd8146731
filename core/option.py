"""Settings declared once: a field of a frozen Config is also a command-line flag, with its check next to it."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

from core.protocols import DataSet, ModelSpec, UserError

Check = Callable[[str, Any], None]  # (flag, value); raises UserError
C = TypeVar("C")

# Roles of a setting in a run: "result": it changes what is computed, so it is part of the run's identity and, if it is
# not at its default, of the run's name. "named": the same, but the published run-name template shows it already. None:
# neither.
RESULT, NAMED = "result", "named"


def option(
    default: Any,
    help: str,
    flag: str | None = None,
    choices: Sequence[Any] | None = None,
    short: str | tuple[str, ...] | None = None,
    check: Check | None = None,
    role: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A Config field that is also a flag: `--<field>` (of a method: `--<method>_<field>`), or `flag` if given.

    The field's annotation gives the flag's type: int, float, str, bool (a switch), or a list or tuple of them (several
    words). short: further spellings. metavar: what --help shows as the value, such as FILE.
    """
    more = (short,) if isinstance(short, str) else tuple(short or ())
    metadata = {"help": help, "flag": flag, "choices": choices, "short": more, "check": check, "role": role}
    return dataclasses.field(default=default, metadata=metadata | {"metavar": metavar})


def check_range(
    flag: str,
    value: float,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """UserError unless above < value, least <= value, value < below, value <= most, for the bounds given. NaN and
    infinity always fail."""
    fits = not isinstance(value, float) or math.isfinite(value)
    fits = fits and (above is None or value > above) and (least is None or value >= least)
    if fits and (below is None or value < below) and (most is None or value <= most):
        return
    bounds = ((above, "above"), (least, "at least"), (below, "below"), (most, "at most"))
    wanted = " and ".join(f"{word} {bound:,.12g}" for bound, word in bounds if bound is not None)
    raise UserError(f"{flag} {value} must be {wanted or 'a finite number'}")


def within(**bounds: float) -> Check:
    """A number in a range; bounds: those of check_range()."""
    return lambda flag, value: check_range(flag, value, **bounds)


positive = within(above=0)
not_negative = within(least=0)
probability = within(least=0, most=1)
share = within(least=0, below=1)
share_above_0 = within(above=0, most=1)


def at_least(low: float, most: float = 10**6) -> Check:
    """A whole number from `low` to `most`; larger ones are typing errors that would take all memory or never end."""

    def check(flag: str, value: float) -> None:
        check_range(flag, value, least=low)
        check_range(flag, value, most=most)

    return check


LARGEST = 1e38  # in size, of a setting, as far as float32 goes; seeds and other whole numbers may have 63 bits


def plausible(flag: str, value: float) -> None:
    """UserError for a number that is NaN, infinite, or larger than any setting needs."""
    if not abs(value) <= (2**63 if isinstance(value, int) else LARGEST):  # NaN is not, either
        largest = "2^63" if isinstance(value, int) else f"{LARGEST:g}"
        raise UserError(f"{flag} {value} must be a finite number between -{largest} and {largest}")


def checked(check: Check) -> type[argparse.Action]:
    """An argparse action: each number of the flag must pass the check."""

    class Checked(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            for value in values if isinstance(values, list) else [values]:
                plausible(self.option_strings[0], value)
                check(self.option_strings[0], value)
            setattr(namespace, self.dest, values)

    return Checked


def whole(low: int, most: int = 10**6) -> dict[str, Any]:
    """Arguments of argparse's add_argument() for whole numbers from `low` to `most`."""
    return {"type": int, "action": checked(at_least(low, most))}


@dataclass(frozen=True)
class Around:
    """The facts about a run that decide, besides a Config itself, whether its flags have an effect.

    dataset, distill: as the user named them. network: the trained one. alone: the method has neither teacher nor peer.
    own_term: it has a term besides cross-entropy and the logit KL.
    """

    dataset: str
    data: DataSet
    network: ModelSpec
    distill: str
    alone: bool
    own_term: bool
    stages: int
    on_cpu: bool
    processes: int


@dataclass(frozen=True)
class Config:
    """Base class of the settings of one component. heading: title of its group of flags in --help."""

    heading: ClassVar[str] = ""
    prefix: ClassVar[str] = ""  # of the flags that have no spelling of their own

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            meta, prefix = declared(type(self), f.name)
            value, check, choices = getattr(self, f.name), meta.get("check"), meta.get("choices")
            flag = meta.get("flag") or f"--{prefix}{f.name}"
            words = value if isinstance(value, list | tuple) else [value]
            if check is None and f.default != value and any(isinstance(w, str) and not w.strip() for w in words):
                raise UserError(f"{flag} is empty: give a value or leave the flag out")
            if choices and value is not None and (wrong := [w for w in words if w not in choices]):
                raise UserError(f"{flag} {wrong[0]} is unknown: choose from {', '.join(map(str, choices))}")
            if check is not None and value is not None:
                check(flag, value)

    def idle(self, around: Around) -> dict[str, str]:
        """Flag -> why it has no effect in a run, whether it was given or not."""
        return {}

    @classmethod
    def every_flag(cls, why: str) -> dict[str, str]:
        """All flags of this Config, for idle()."""
        return dict.fromkeys((flag.dest for flag in flags_in(cls)), why)


def declared(config: type[Config], name: str) -> tuple[Mapping[str, Any], str]:
    """What option() says of a field, and the prefix of the class that declares it; a subclass that redeclares it with
    another default leaves option() out."""
    meta: Mapping[str, Any] = {}
    prefix = config.prefix
    for kind in config.__mro__:
        f = kind.__dict__.get("__dataclass_fields__", {}).get(name)
        if f is None or not f.metadata:
            continue
        meta = meta or f.metadata
        if f.metadata is meta:  # a class also lists the fields that it inherits
            prefix = cast(type[Config], kind).prefix
    return meta, prefix


UNSET: Any = object()  # the value of a flag that was not given


@dataclass(frozen=True)
class Flag:
    """One flag, made from a Config field. default: used unless the user, the model, the method or the data set gives
    another value. role: see RESULT and NAMED."""

    names: tuple[str, ...]
    default: Any
    help: str
    type: Any = str
    choices: tuple[Any, ...] | None = None
    role: str | None = None
    nargs: str | None = None
    check: Check | None = None
    metavar: str | None = None

    @property
    def dest(self) -> str:
        return self.names[0].lstrip("-")


_KINDS = {"int": int, "float": float, "str": str, "bool": bool}


@functools.cache
def flag_of(f: dataclasses.Field[Any], prefix: str = "") -> Flag:
    """The flag of a field made by option(). prefix: put before the field's name, unless `flag` gives the spelling."""
    meta, annotation = f.metadata, str(f.type).replace(" | None", "")
    several = re.fullmatch(r"(?:list|tuple)\[(\w+)(?:, \.\.\.)?\]", annotation)
    kind = _KINDS.get(several[1] if several else annotation, type(f.default))
    names = (meta["flag"] or f"--{prefix}{f.name}", *meta["short"])
    nargs, choices = "+" if several else None, None if meta["choices"] is None else tuple(meta["choices"])
    return Flag(names, f.default, meta["help"], kind, choices, meta["role"], nargs, meta["check"], meta["metavar"])


_PARTS: dict[type, Mapping[str, type]] = {}  # evaluating annotations takes longer than the rest of parsing


def parts_of(config: type) -> Mapping[str, type]:
    """Field name -> Config class, for the fields of a dataclass that are Configs or groups of Configs."""
    if config not in _PARTS:
        kinds = typing.get_type_hints(config)
        fields = {f.name: kinds[f.name] for f in dataclasses.fields(config)}
        _PARTS[config] = {k: v for k, v in fields.items() if dataclasses.is_dataclass(v) and isinstance(v, type)}
    return _PARTS[config]


def flags_by_field(config: type) -> dict[str, Flag]:
    """Field name -> flag, for the fields made by option()."""
    return {f.name: flag_of(f) for f in dataclasses.fields(config) if "help" in f.metadata}


def flags_in(config: type) -> tuple[Flag, ...]:
    """The flags of a Config, or of all Configs of a group."""
    return (*flags_by_field(config).values(), *(flag for part in parts_of(config).values() for flag in flags_in(part)))


def refuse_absurd(flags: Iterable[Flag], values: Mapping[str, Any]) -> None:
    """UserError for the first of these flags with a number that is not plausible()."""
    for flag in flags:
        value = values.get(flag.dest)
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, int | float):
                plausible(flag.names[0], one)


def read(config: type[C], values: Mapping[str, Any]) -> C:
    """Build the Config (or group of Configs) from parsed values; absent flags keep their defaults."""
    found = {name: values[flag.dest] for name, flag in flags_by_field(config).items() if flag.dest in values}
    return config(**found, **{name: read(part, values) for name, part in parts_of(config).items()})


def flat(config: Any) -> dict[str, Any]:
    """Flag -> value for a Config or a group of Configs; the inverse of read()."""
    own = {flag.dest: getattr(config, name) for name, flag in flags_by_field(type(config)).items()}
    for name in parts_of(type(config)):
        own |= flat(getattr(config, name))
    return own


def idle_in(config: Any, around: Around) -> dict[str, str]:
    """idle() of a Config, or of all Configs of a group."""
    why = config.idle(around) if isinstance(config, Config) else {}
    for name in parts_of(type(config)):
        why |= idle_in(getattr(config, name), around)
    return why


def add_flag(parser: argparse._ActionsContainer, flag: Flag, **kwargs: Any) -> None:
    """Add a flag to an argparse parser or group; a flag that is not given parses as UNSET."""
    kwargs |= {"dest": flag.dest, "help": flag.help.replace("%", "%%"), "default": UNSET}
    if flag.type is bool:
        parser.add_argument(*flag.names, action="store_const", const=True, **kwargs)
        return
    if flag.default not in (None, "", ()) and "default" not in flag.help:
        kwargs["help"] += f" (default {flag.default})"
    if flag.choices is None:
        kwargs["metavar"] = flag.metavar or ("TEXT" if flag.type is str else flag.type.__name__.upper())
    parser.add_argument(*flag.names, type=flag.type, choices=flag.choices, nargs=flag.nargs, **kwargs)


def add_groups(parser: argparse.ArgumentParser, config: type) -> None:
    """Add one group of --help for each Config of a group of Configs."""
    if own := flags_by_field(config):
        container = parser.add_argument_group(config.heading) if issubclass(config, Config) else parser
        for flag in own.values():
            add_flag(container, flag)
    for part in parts_of(config).values():
        add_groups(parser, part)


def add_flags(parser: argparse._ActionsContainer, flags: Sequence[Flag]) -> None:
    """Add some flags, with their defaults and checks, to the parser of another script."""
    for flag in flags:
        is_number = flag.type in (int, float)
        add_flag(parser, flag, **({"action": checked(flag.check or plausible)} if is_number else {}))
        parser.set_defaults(**{flag.dest: flag.default})
