"""Registries: public name -> 'module:attribute', imported when the name is first used."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.protocols import UserError

PREFIX = "plugin_"  # of a file's name as a module


class Registry(Mapping[str, Any]):
    """A mapping of public names.

    kind: the word for an entry in messages ("model", "method", "data set").
    table: name -> 'module:attribute'. Iteration and len() see these names only, so every entry is visited once.
    aliases: other spelling -> name in the table; lookups accept them, iteration does not list them.
    resolvers: prefix -> 'module:function', which builds every `prefix:NAME` and raises UserError for an unknown NAME.
        Lookups accept these names; iteration does not list them.
    """

    def __init__(
        self,
        kind: str,
        table: Mapping[str, str],
        aliases: Mapping[str, str] | None = None,
        resolvers: Mapping[str, str] | None = None,
    ):
        self.kind, self.table, self.aliases = kind, dict(table), dict(aliases or {})
        self.resolvers = dict(resolvers or {})
        stray = {a: n for a, n in self.aliases.items() if n not in self.table or a in self.table}
        assert not stray, f"{kind} aliases must be new spellings of known names: {stray}"

    def resolve(self, name: str) -> str:
        """The canonical name of a spelling; UserError with similar names if there is none."""
        if self._resolver(name):
            self[name]  # raises if there is none
            return name
        name = self.aliases.get(name, name)
        if name not in self.table:
            known = [*self.table, *self.aliases]
            lowered = {k.lower(): k for k in known}
            near = [lowered[k] for k in difflib.get_close_matches(name.lower(), lowered, n=3)]
            prefix, colon, rest = name.partition(":")
            if colon:
                near = [f"{p}:{rest}" for p in difflib.get_close_matches(prefix.lower(), self.resolvers, n=1)]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            open_ended = "".join(f", {prefix}:NAME" for prefix in self.resolvers)
            raise UserError(f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(sorted(self.table))}{open_ended}")
        return name

    def add(self, name: str, path: str, origin: str) -> None:
        """Register a name for 'module:attribute'; UserError if the name is taken. origin: for the message."""
        if name in self.aliases or self.table.get(name, path) != path:
            raise UserError(f"the {self.kind} name '{name}' is already taken: rename the one in {origin}")
        self.table[name] = path

    def _resolver(self, name: object) -> str | None:
        prefix, colon, _ = name.partition(":") if isinstance(name, str) else ("", "", "")
        return self.resolvers.get(prefix) if colon else None

    def __getitem__(self, name: str) -> Any:
        if resolver := self._resolver(name):
            return _attribute(resolver)(name.partition(":")[2])
        return _attribute(self.table[self.resolve(name)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, name: object) -> bool:
        if isinstance(name, str) and self._resolver(name):
            with contextlib.suppress(UserError):
                return self[name] is not None
            return False
        return name in self.table or name in self.aliases


def _attribute(path: str) -> Any:
    module, attribute = path.split(":")
    return getattr(importlib.import_module(module), attribute)


def loaded_plugins() -> dict[str, str]:
    """File name -> SHA-256 of its content, for every plugin of this process."""
    files = [Path(str(m.__file__)) for name, m in list(sys.modules.items()) if name.startswith(PREFIX)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
