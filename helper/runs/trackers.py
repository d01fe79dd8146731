"""Experiment trackers: wandb, Trackio or MLflow show what a run writes to its own files.

A tracker gets the settings, the numbers of every epoch, the result and, on request, the best checkpoint. A resumed run
continues as the same run of its tracker. metrics.jsonl is the complete record: if a tracker fails, the run only warns.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import io
import logging
import os
import re
import secrets
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import remember, remembered
from core.log import log
from core.option import Config, option
from core.protocols import UserError, first_line
from helper.runs.folder import RunFolder


@dataclass(frozen=True)
class TrackerConfig(Config):
    """Settings of the experiment tracker."""

    heading = "experiment tracker"

    tracker: str = option(
        "none", "tracker to report to, in addition to the event files", choices=("none", "wandb", "trackio", "mlflow")
    )
    tracker_project: str = option("retort", "project of the tracker (MLflow: experiment)", metavar="NAME")
    tracker_artifacts: bool = option(False, "upload the best checkpoint to the tracker at the end of the run")


@dataclass(frozen=True)
class Place:
    """How to open a run of a tracker. identifier: None: a new run. store: folder for local data."""

    project: str
    name: str
    identifier: str | None
    settings: Mapping[str, Any]
    store: Path


class _Wandb:
    """Without an account, or with WANDB_MODE=offline, runs are stored in a folder for `wandb sync`."""

    def __init__(self, place: Place):
        import wandb

        self.wandb, self.name = wandb, place.name
        self.identifier = place.identifier or secrets.token_hex(8)
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self.run = wandb.init(
            project=place.project,
            name=place.name,
            id=self.identifier,
            resume=None if mode == "offline" else "allow",  # offline, `wandb sync` joins runs with the same id
            config=dict(place.settings),
            dir=os.environ.get("WANDB_DIR") or place.store.parent,  # in a folder wandb of it
            mode=mode,
            reinit="create_new",  # jointly trained students are simultaneous runs
            settings=wandb.Settings(silent=True, console="off"),
        )

    def row(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def result(self, values: Mapping[str, Any], step: int) -> None:
        self.run.summary.update({f"result/{k}": v for k, v in values.items()})

    def artifact(self, path: Path) -> None:
        artifact = self.wandb.Artifact(f"checkpoint-{self.identifier}", type="model", metadata={"run": self.name})
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class _Trackio:
    """Its database is in TRACKIO_DIR, or next to the runs; `trackio show` reads it."""

    def __init__(self, place: Place):
        os.environ.setdefault("TRACKIO_DIR", str(place.store.resolve()))
        import trackio

        self.trackio, self.identifier = trackio, place.identifier or f"{place.name}-{secrets.token_hex(3)}"
        with contextlib.redirect_stdout(io.StringIO()):
            # in a separate context: init() ends the run of its context, possibly that of another student
            self.run = contextvars.copy_context().run(
                trackio.init,
                project=place.project,
                name=self.identifier,
                config=dict(place.settings),
                resume="allow",
                embed=False,
            )

    def row(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def result(self, values: Mapping[str, Any], step: int) -> None:
        self.run.log({f"result/{k}": v for k, v in values.items()}, step=step)

    def artifact(self, path: Path) -> None:
        name = re.sub(r"[^\w.-]", "-", f"checkpoint-{self.identifier}", flags=re.ASCII)
        self.run.log_artifact(path, name=name, type="model")

    def close(self, finished: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.finish()


class _Mlflow:
    """Its store is MLFLOW_TRACKING_URI, or a database next to the runs, which `mlflow ui --backend-store-uri` shows."""

    def __init__(self, place: Place):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for library in ("mlflow", "alembic"):  # these loggers report the creation of the database
            logging.getLogger(library).setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own 7 hold a run up for five minutes
        remote, files = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not remote:
            place.store.mkdir(parents=True, exist_ok=True)
            files = (place.store / "artifacts").resolve().as_uri()
        self.client = MlflowClient(remote or local_mlflow(place.store))
        if place.identifier is None:
            found = self.client.get_experiment_by_name(place.project)
            experiment = found.experiment_id if found else self.client.create_experiment(place.project, files)
            run = self.client.create_run(experiment, run_name=place.name)
            params = [Param(k, str(v)[:500]) for k, v in place.settings.items()]
            for start in range(0, len(params), 100):  # the limit of one call
                self.client.log_batch(run.info.run_id, params=params[start : start + 100])
            self.identifier = run.info.run_id
        else:
            self.identifier = place.identifier
            self.client.update_run(self.identifier, status="RUNNING")

    def row(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.identifier, metrics=[Metric(k, float(v), now, step) for k, v in values.items()])

    def result(self, values: Mapping[str, Any], step: int) -> None:
        numbers = {f"result/{k}": v for k, v in values.items() if isinstance(v, int | float)}
        self.row(numbers, step)
        for name in values.keys() - {k.removeprefix("result/") for k in numbers}:
            self.client.set_tag(self.identifier, f"result/{name}", str(values[name]))

    def artifact(self, path: Path) -> None:
        self.client.log_artifact(self.identifier, str(path), "checkpoint")

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.identifier, "FINISHED" if finished else "KILLED")


def local_mlflow(store: Path) -> str:
    """Where MLflow stores runs locally: SQLite, or files if the database's package is missing."""
    folder = store.resolve()
    return f"sqlite:///{folder / 'mlflow.db'}" if importlib.util.find_spec("sqlalchemy") else (folder / "runs").as_uri()


Tracker = _Wandb | _Trackio | _Mlflow  # an open run; identifier: of the run in the tracker
TRACKERS: dict[str, Callable[[Place], Tracker]] = {"wandb": _Wandb, "trackio": _Trackio, "mlflow": _Mlflow}


def require_tracker(cfg: TrackerConfig) -> None:
    """UserError if the package of --tracker is missing; called before the run writes anything."""
    if cfg.tracker != "none" and importlib.util.find_spec(cfg.tracker) is None:
        raise UserError(
            f"--tracker {cfg.tracker} needs the package {cfg.tracker}: pip install {cfg.tracker}, or leave it out"
        )


class Reports:
    """Reports one run to its tracker, if there is one.

    tracker.json in the run's folder holds the tracker's identifier of the run and its number of rows, so that a resumed
    run continues it. The first failure causes one warning; nothing is reported after it.
    """

    def __init__(
        self, cfg: TrackerConfig, folder: RunFolder, settings: Mapping[str, Any], logger: logging.Logger = log
    ):
        self.cfg, self.folder, self.settings, self.log = cfg, folder, settings, logger
        self.off, self.known, self.identifier = cfg.tracker == "none", 0, ""
        self.open: Tracker | None = None

    @property
    def note(self) -> Path:
        return self.folder.models / "tracker.json"

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Report the rows of metrics.jsonl that the tracker does not have yet."""

        def send(tracker: Tracker) -> None:
            for i in range(self.known, len(rows)):
                tracker.row({k: v for k, v in rows[i].items() if isinstance(v, int | float)}, i + 1)
                self._remember(i + 1)

        self._try(send)

    def result(self, values: Mapping[str, Any]) -> None:
        """The run's row of a table, and with --tracker_artifacts its best checkpoint."""

        def send(tracker: Tracker) -> None:
            tracker.result({k: v for k, v in values.items() if v is not None}, self.known)
            if self.cfg.tracker_artifacts:
                tracker.artifact(self.folder.best)

        self._try(send)

    def close(self, finished: bool) -> None:
        if self.open is not None:
            self._try(lambda tracker: tracker.close(finished))
        self.open = None

    def _try(self, work: Callable[[Tracker], None]) -> None:
        if self.off:
            return
        try:
            if self.open is None:
                self.open = self._opened()
            work(self.open)
        except Exception as error:  # a tracker may raise any error of its server, store or version
            self.off = True
            self.log.warning(
                "--tracker %s failed (%s): the run continues without it, and %s is complete",
                self.cfg.tracker,
                textwrap.shorten(first_line(error), 300, placeholder=" ..."),
                self.folder.metrics,
            )

    def _opened(self) -> Tracker:
        before = remembered(self.note).get(self.cfg.tracker)
        before = before if isinstance(before, dict) else {}
        store = self.folder.models.parents[2] / self.cfg.tracker
        place = Place(self.cfg.tracker_project, self.folder.models.name, before.get("id"), self.settings, store)
        tracker = TRACKERS[self.cfg.tracker](place)
        self.known, self.identifier = int(before.get("rows", 0)), tracker.identifier
        self._remember(self.known)
        return tracker

    def _remember(self, rows: int) -> None:
        self.known = rows
        mine = {self.cfg.tracker: {"id": self.identifier, "rows": rows}}
        remember(remembered(self.note) | mine, self.note)
