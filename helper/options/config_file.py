"""--config FILE: settings from a TOML, JSON or YAML file, or from a run's own args.json; --print_config writes one."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import read_config
from core.option import Flag
from core.protocols import UserError

# settings of the process or place of a run, not of the experiment that its args.json repeats
PLACE = ("save_root", "resume", "overwrite", "dry_run", "trials", "name", "dist_url", "world_size", "rank")


@dataclasses.dataclass(frozen=True)
class FileSettings:
    """given: spelling of a flag -> value in the file. recorded: every setting of the run, if the file is an args.json;
    {} otherwise."""

    path: str = ""
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def text(self, name: str) -> str:
        """A setting that decides which other settings exist; several values are joined by commas; "" if absent."""
        value = self.given.get(name) or ""
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    def typed(self, flags: Mapping[str, Flag], elsewhere: Sequence[str]) -> dict[str, Any]:
        """Flag -> value. elsewhere: flags of other methods, allowed only in a run's args.json."""
        spellings = {name.lstrip("-"): flag for flag in flags.values() for name in flag.names}
        found: dict[str, Any] = {}
        for name, value in self.given.items():
            if name not in spellings:
                if self.recorded and name in elsewhere:
                    continue
                near = difflib.get_close_matches(name, [*spellings, *elsewhere], n=1)
                hint = f": did you mean {near[0]}?" if near else ": --help_all shows every setting"
                method = " with this --distill" if name in elsewhere else ""
                raise UserError(f"{self.path} sets {name!r}, which is not a setting of this script{method}{hint}")
            flag = spellings[name]
            if flag.dest in found:
                raise UserError(f"{self.path} sets {flag.dest} twice, in two spellings: keep one of them")
            if value is not None and not (flag.type is bool and value is False):
                found[flag.dest] = self._typed(flag, value)
        return found

    def _typed(self, flag: Flag, value: Any) -> Any:
        """The value in the form that the command line gives."""
        if flag.nargs is None and flag.type is str and isinstance(value, list):
            value = ",".join(map(str, value))  # lr_decay_epochs = [150, 180, 210]
        values = value if flag.nargs and isinstance(value, list) else [value]
        kinds = {int: (int,), float: (int, float), bool: (bool,), str: (str, int, float)}[flag.type]
        for one in values:
            if not isinstance(one, kinds) or (isinstance(one, bool) and flag.type is not bool):
                raise UserError(f"{self.path}: {flag.dest} = {json.dumps(one)} must be {WORDS[flag.type]}")
            if flag.choices is not None and one not in flag.choices:
                raise UserError(
                    f"{self.path}: {flag.dest} = {json.dumps(one)} must be one of {', '.join(flag.choices)}"
                )
        typed = [one if flag.type is bool else flag.type(one) for one in values]
        return typed if flag.nargs else typed[0]

    def unlike(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that were defaults in the recorded run and have other defaults now."""
        found = {}
        for name, now in defaults.items():
            then = self.recorded.get(name)
            then = tuple(then) if isinstance(then, list) and isinstance(now, tuple) else then
            if name not in self.given and None not in (then, now) and then != now:
                found[name] = then
        return found


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read_file(path: str | None, script: str) -> FileSettings:
    """The settings of --config. script: train_teacher.py or train_student.py."""
    if path is None:
        return FileSettings()
    content = read_config(Path(path))
    settings, sources = content.get("settings"), content.get("sources")
    if not (isinstance(settings, dict) and isinstance(sources, dict)):
        flat: dict[str, Any] = {}
        for name, value in content.items():  # a TOML table only groups settings
            flat |= value if isinstance(value, dict) else {name: value}
        return FileSettings(path, {name.replace("-", "_"): value for name, value in flat.items()})
    own = "train_teacher.py" if "model" in settings else "train_student.py"
    if own != script:
        raise UserError(f"{path} is from a run of {own}, but this is {script}: use {own}")
    settings = {k: v for k, v in settings.items() if k not in PLACE}
    given = {k: v for k, v in settings.items() if sources.get(k) in ("command line", "file")}
    return FileSettings(path, given, settings)


def text(values: Mapping[str, Any], sources: Mapping[str, str], command: str) -> str:
    """A TOML file that --config reads. values: flag -> value; None: it follows from others."""
    lines = [f"# {command}"]
    for name, value in values.items():
        if value is None or value == ():
            continue
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}  # {sources.get(name, 'default')}")
    return "\n".join(lines) + "\n"
