"""Methods and models from files outside the repository: `--plugin FILE.py` registers what the file defines."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from core.protocols import ModelSpec, UserError
from core.registry import PREFIX
from distiller_zoo import method_dict
from distiller_zoo.base import Distiller
from models import model_dict


def load_plugins(paths: Sequence[str]) -> None:
    """Import each file once; its Distiller subclasses with a name become methods, its ModelSpecs models.

    UserError if a file is missing, defines neither, or uses a name that is taken. Errors of the file's code keep their
    traceback.
    """
    for path in paths:
        module = _import(Path(path))
        methods = [
            kind
            for kind in vars(module).values()
            if inspect.isclass(kind)
            and issubclass(kind, Distiller)
            and kind.__module__ == module.__name__
            and "name" in vars(kind)
        ]
        first_stages = {kind.before for kind in methods}
        entries = [(method_dict, kind.name, kind.__name__) for kind in methods if kind not in first_stages]
        entries += [(model_dict, v.name, k) for k, v in vars(module).items() if isinstance(v, ModelSpec)]
        if not entries:
            raise UserError(f"--plugin {path} defines neither a method (a Distiller with a name) nor a ModelSpec")
        for registry, name, attribute in entries:
            registry.add(name, f"{module.__name__}:{attribute}", path)


def _import(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--plugin {path} is not a Python file: give the path of a file that ends in .py")
    name = PREFIX + path.stem
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
