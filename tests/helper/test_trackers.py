"""What a run reports to a tracker, read back with the tracker's own library; none of them asks a server."""

import json
import logging
import struct
from pathlib import Path

import pytest

from helper.runs import trackers
from helper.runs.folder import RunFolder
from helper.runs.trackers import Reports, TrackerConfig
from tests.support.run_folders import rows_of, write_run

OFFLINE = {"WANDB_MODE": "offline", "GIT_PYTHON_REFRESH": "quiet"}


def records_of(path):
    """The records of wandb's file: a header of 7 bytes, then LevelDB's log of blocks, in which a record may be cut."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # the rest of a block that holds no header
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def values_of(items):
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def read_wandb(store):
    """(settings, rows by step, result) of the one run of an offline folder, and the names of its artifacts."""
    import wandb

    wandb.teardown()  # its files are complete when its process has ended
    config, rows, summary, artifacts, runs = {}, {}, {}, [], set()
    for path in sorted(Path(store).glob("offline-run-*/*.wandb")):
        for record in records_of(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.add(record.run.run_id)
                config |= values_of(record.run.config.update)
            elif kind == "history":
                row = values_of(record.history.item)
                rows[row["_step"]] = row
            elif kind == "summary":
                summary |= values_of(record.summary.update)
            elif kind == "artifact" and record.artifact.type == "model":
                artifacts.append(record.artifact.name)
    assert len(runs) == 1, (runs, list(Path(store).iterdir()))
    return config, {step: row for step, row in rows.items() if "test_acc" in row}, summary, artifacts


def read_trackio(store):
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_project_db_path("retort").resolve().parent == Path(store).resolve()
    (run,) = SQLiteStorage.get_run_records("retort")
    logs = SQLiteStorage.get_logs("retort", run_id=run["id"])
    rows = {row["step"]: row for row in logs if "test_acc" in row}
    result = {k: v for row in logs for k, v in row.items() if k.startswith("result/")}
    artifacts = [found["name"] for found in SQLiteStorage.get_artifacts("retort")]
    return SQLiteStorage.get_run_config("retort", run_id=run["id"]), rows, result, artifacts


def read_mlflow(store):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path(store).resolve() / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("retort").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "test_acc")
    rows = {metric.step: {"test_acc": metric.value} for metric in history}
    assert len(rows) == len(history)  # nothing twice
    files = client.list_artifacts(run.info.run_id, "checkpoint")
    return run.data.params, rows, run.data.metrics | run.data.tags, [file.path for file in files]


READERS = {"wandb": read_wandb, "trackio": read_trackio, "mlflow": read_mlflow}


# MLflow makes a database of its own first, which takes ten seconds
@pytest.mark.parametrize("name", ["wandb", "trackio", pytest.param("mlflow", marks=pytest.mark.slow)])
def test_store_holds_the_run(name, commands, tmp_path, monkeypatch):
    """A training, then a continuation of it by one row, which lands in the same run."""
    store = tmp_path / name
    monkeypatch.setenv("TRACKIO_DIR", str(store))  # which the package reads when it is imported
    pytest.importorskip(name, reason=f"needs {name}, of requirements-extra.txt")
    argv = ("--epochs", 1, "--max_steps", 1, "--tb_backend", "none", "--lr_decay_epochs", "", "--save_root", tmp_path)
    argv += ("--tracker", name, "--tracker_artifacts")
    done = commands.teacher(*argv, env=OFFLINE | {"TRACKIO_DIR": str(store)})
    assert done.code == 0 and "failed" not in done.out, done
    (models,) = (tmp_path / "teachers" / "models").iterdir()
    rows = rows_of(models)
    folder = RunFolder(models, tmp_path / "tensorboard", "resnet8")
    for key, value in OFFLINE.items():
        monkeypatch.setenv(key, value)
    said: list[str] = []
    logger = logging.Logger("test")
    logger.addHandler(logging.Handler())
    logger.handlers[0].emit = lambda record: said.append(record.getMessage())
    settings = json.loads((models / "args.json").read_text())["settings"]
    more = Reports(TrackerConfig(tracker=name), folder, settings, logger)
    more.rows([*rows, rows[0] | {"epoch": 2, "test_acc": 12.5}])
    more.close(finished=True)
    assert not said, said
    settings, kept, result, artifacts = READERS[name](store)
    assert str(settings["batch_size"]) == "64" and str(settings["model"]) == "resnet8"
    assert {step: row["test_acc"] for step, row in kept.items()} == pytest.approx({1: rows[0]["test_acc"], 2: 12.5})
    assert result["result/last_epoch_acc"] == rows[0]["test_acc"] and result["result/network"] == "resnet8"
    assert len(artifacts) == 1 and "checkpoint" in artifacts[0]


class Broken:
    """A tracker whose server leaves at a certain row."""

    identifier = "x"

    def __init__(self, place):
        self.rows = []

    def row(self, values, step):
        if step == 2:
            raise ConnectionError("the server is gone\nand more lines")
        self.rows.append(step)

    def close(self, finished):
        raise AssertionError("not reached after a failure")


def test_a_tracker_that_fails_costs_one_warning(tmp_path, monkeypatch, caplog):
    models = write_run(tmp_path, "--distill vanilla", [50, 60, 70], alone=True)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Broken)
    folder = RunFolder(models, tmp_path / "tensorboard", "resnet8x4")
    logger = logging.getLogger("a run")
    reports = Reports(TrackerConfig(tracker="wandb"), folder, {}, logger)
    rows = folder.rows()
    for count in (1, 2, 3):
        reports.rows(rows[:count])
    reports.result({"last_epoch_acc": 70})
    reports.close(finished=True)
    (warning,) = caplog.records
    text = warning.getMessage()
    assert "the server is gone" in text and "more lines" not in text and str(folder.metrics) in text
    assert json.loads((models / "tracker.json").read_text())["wandb"] == {"id": "x", "rows": 1}


def test_a_missing_package_is_one_sentence(commands, tmp_path):
    argv = ("--epochs", 1, "--save_root", tmp_path, "--tracker", "mlflow")
    commands.teacher(*argv, hide="mlflow").refused("--tracker mlflow needs the package mlflow", "pip install mlflow")
    assert not list(tmp_path.iterdir())
