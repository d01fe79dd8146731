"""Shared fixtures and the rule about skips. Tests import their helpers (toys, contract, cases) from tests/support."""

import gc
import importlib.util
import os
from pathlib import Path

import pytest

from core.log import log
from tests.support.commands import Commands

HERE = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        "--strict-skips", action="store_true", help="fail on a skip whose reason is not in allowed_skips.txt"
    )


def allowed_reasons():
    lines = (HERE / "allowed_skips.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def strange_skips(reporter):
    reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    return [reason for reason in reasons if not any(a in reason for a in allowed_reasons())]


def pytest_collection(session):
    """What is imported stays: the collector need not look at it, now or later (half a second each time)."""
    gc.disable()


def pytest_collection_finish(session):
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config):
    gc.unfreeze()  # or libraries that count what is left at the end see leaks


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not session.config.getoption("--strict-skips"):
        return
    if strange := strange_skips(reporter):
        reporter.write_line("\nskipped for a reason that is not in tests/allowed_skips.txt:\n  " + "\n  ".join(strange))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


FRESH = log.handlers[:], log.level, log.propagate


@pytest.fixture(autouse=True)
def quiet_log():
    """Each test finds the logger as a new process would: no console that another test or a fixture opened."""
    log.handlers[:], log.level, log.propagate = FRESH
    yield
    log.handlers[:], log.level, log.propagate = FRESH


@pytest.fixture
def quick_export(monkeypatch):
    """For tests that export in this process."""
    from tests.support.quick_export import list_operators_once, shorten

    shorten(monkeypatch.setattr)
    if importlib.util.find_spec("onnxscript"):
        list_operators_once(monkeypatch.setattr)


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        pytest.skip("needs pidfd_open, of Linux 5.3 or newer: scripts are run in forked processes, which it watches")
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def teacher_run(commands, tmp_path_factory) -> Path:
    """Folder of a finished teacher: resnet8 on digits, two epochs."""
    root = tmp_path_factory.mktemp("teacher")
    commands.teacher("--epochs", 2, "--save_root", root).finished()
    (folder,) = (root / "teachers" / "models").iterdir()
    return folder


@pytest.fixture(scope="session")
def teacher(teacher_run) -> Path:
    """Its best checkpoint."""
    return teacher_run / "resnet8_best.pth"
