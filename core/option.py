"""Settings declared once: a Config field that is also a command-line flag."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.protocols import UserError


def _add(parser: argparse._ActionsContainer, names: Sequence[str], flag: Flag) -> None:
    kwargs: dict[str, Any] = {"dest": flag.dest, "help": flag.help, "default": UNSET}
    if flag.type is bool:
        parser.add_argument(*names, action="store_const", const=True, **kwargs)
        return
    if flag.default not in (None, "") and "default" not in flag.help:
        kwargs["help"] += f" (default {flag.default})"
    if flag.choices is None:
        kwargs["metavar"] = getattr(flag.type, "__name__", "value").upper() if flag.type is not str else "TEXT"
    parser.add_argument(*names, type=flag.type, choices=flag.choices, nargs=flag.nargs, **kwargs)


def add_flags(parser: argparse._ActionsContainer, flags: Sequence[Flag]) -> None:
    """A part of the table of flags for another script's parser, with its defaults."""
    for flag in flags:
        _add(parser, flag.names, flag)
        parser.set_defaults(**{flag.dest: flag.default})


def option(
    default: Any, help: str, flag: str | None = None, choices: Sequence[Any] | None = None, short: str | None = None
) -> Any:
    """A Config field that is also a command-line flag: `--<method>_<field>`, or the published spelling `flag`."""
    metadata = {"help": help, "flag": flag, "choices": choices, "short": short}
    return dataclasses.field(default=default, metadata=metadata)


def check_range(
    flag: str, value: float, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> None:
    """UserError unless above < value and least <= value <= most, as far as given; NaN and infinity never pass."""
    fits = math.isfinite(value)
    fits = fits and (above is None or value > above) and (least is None or value >= least)
    if fits and (most is None or value <= most):
        return
    bounds = ((above, "above"), (least, "at least"), (most, "at most"))
    wanted = " and ".join(f"{word} {bound:.12g}" for bound, word in bounds if bound is not None)
    raise UserError(f"{flag} {value} must be {wanted or 'a finite number'}")


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
