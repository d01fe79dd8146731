#!/usr/bin/env python3
"""Test whether the tests of the losses detect wrong losses: python scripts/dev/mutate.py [METHOD ...]

Each mutant is the tree with one sign or one constant changed in a method's equation, as tests/distiller_zoo/mutants.py
lists them. The loss and reference tests of that method run on a temporary copy until one fails. Prints a table; exit
code 1 if a mutant survives or the tests fail without any. Takes minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import ROOT
from distiller_zoo import method_dict
from helper.machine.program import ScriptParser, run_script
from tests.distiller_zoo.mutants import MUTANTS, Mutant

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a process that forks may have no threads
PACKAGES = ("core", "crd", "dataset", "distiller_zoo", "helper", "models", "tests")

TESTS = (
    "test_reference_classic",
    "test_losses_classic",
    "test_losses_new",
    "test_losses_recent",
    "test_reference_losses",
    "test_losses",
    "test_methods",
    "test_cakd",
    "test_dask",
    "test_losses_hsakd",
    "test_losses_recent_features",
    "test_losses_recent_graph",
    "test_losses_parts",
)

DEADLINE = 300  # seconds for one run of the tests


def copy_tree(target: Path) -> None:
    """Everything git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def run_tests(tree: Path, selection: str, report: Path) -> None:
    """In a forked process: the project is imported again, from the tree."""
    os.chdir(tree)
    sys.path[:] = [p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "scripts")]
    for name in [m for m in sys.modules if m.split(".")[0] in PACKAGES]:
        del sys.modules[name]
    # a mutant may have the length of the original and its second: no byte code may be left that looks up to date
    sys.dont_write_bytecode = True
    with report.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        tests = [f"tests/distiller_zoo/{name}.py" for name in TESTS]
        code = pytest.main(["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-k", selection, *tests])
        sys.stdout.flush()
        os._exit(code)


def first_failure(tree: Path, selection: str = "") -> str | None:
    """The first test that fails on a tree, None if all pass. Anything else that goes wrong raises."""
    report = tree / "report.txt"
    child = multiprocessing.get_context("fork").Process(target=run_tests, args=(tree, selection, report))
    child.start()
    child.join(DEADLINE)
    if child.is_alive():
        child.kill()
        child.join()
    if child.exitcode == 0:
        return None
    lines = report.read_text().splitlines()
    failed = [line.split()[1] for line in lines if line.startswith("FAILED ")]
    if child.exitcode != 1 or not failed:
        text = "\n".join(lines[-20:])
        raise RuntimeError(f"the tests did not run (exit code {child.exitcode}):\n{text}")
    return failed[0]


def tests_of(method: str) -> str:
    """A selection of tests for pytest's -k: those with the method's name, or another spelling of it, in theirs."""
    spellings = [method, *(alias for alias, name in method_dict.aliases.items() if name == method)]
    return " or ".join([*spellings, *(["kd"] if method == "vanilla" else [])])  # cross-entropy is tested with kd


def try_mutant(tree: Path, method: str, mutant: Mutant) -> str | None:
    path = tree / mutant.path(method)
    original = path.read_text()
    if mutant.old not in original:
        raise RuntimeError(f"{mutant.path(method)} has no text '{mutant.old}': the mutant of {method} changes nothing")
    try:
        path.write_text(original.replace(mutant.old, mutant.new))
        return first_failure(tree, tests_of(method))
    finally:
        path.write_text(original)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ScriptParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="methods to mutate (default: all of them)")
    methods = [method_dict.resolve(m) for m in parser.parse_args(argv).methods] or list(method_dict)
    without = [m for m in methods if m not in MUTANTS]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        if failure := first_failure(Path(folder), " or ".join(map(tests_of, methods))):
            print(f"{failure} fails without any change: fix it before testing mutants")
            return 1
        print(f"{'method':10s} {'change':75s} {'s':>4s}  noticed by")
        for method in methods:
            for mutant in MUTANTS.get(method, ()):
                started = time.monotonic()
                failure = try_mutant(Path(folder), method, mutant)
                survivors += failure is None
                change = f"{mutant.old} -> {mutant.new}"
                print(
                    f"{method:10s} {change:75s} {time.monotonic() - started:4.0f}  {failure or 'NOTHING'}", flush=True
                )
    total = sum(len(MUTANTS.get(m, ())) for m in methods)
    print(f"{total} mutants of {len(methods) - len(without)} methods, {survivors} survive")
    if without:
        print(f"methods without a mutant: {', '.join(without)}")
    return int(bool(survivors))


if __name__ == "__main__":
    run_script(main)
