"""The resolved settings of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.option import Flag
from distiller_zoo.base import Distiller
from helper.machine.seeding import trial_seed


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
    label: str = ""  # of this student among those trained together

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
