"""scripts/dev/mutate.py changes what it means to change; the run itself takes minutes and is made by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

from distiller_zoo import method_dict

ROOT = Path(__file__).resolve().parents[2]


def load():
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "dev" / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mutate = load()


@pytest.mark.parametrize("method", mutate.MUTANTS)
def test_every_mutation_has_one_place(method):
    assert method in method_dict and mutate.MUTANTS[method]
    for mutant in mutate.MUTANTS[method]:
        text = (ROOT / mutant.path(method)).read_text()
        assert text.count(mutant.old) == 1, mutant
        assert mutant.old != mutant.new
        compile(text.replace(mutant.old, mutant.new), mutant.path(method), "exec")
