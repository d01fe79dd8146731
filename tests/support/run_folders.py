"""Run folders: finished ones as training leaves them, written without training, and what is read from any."""

import json
from collections.abc import Sequence
from pathlib import Path

from core.files import remember
from helper.options.naming import folder_of
from helper.options.parse import parse

ENVIRONMENT = {"cpu": "a CPU", "cpu_threads": 1, "gpus": [], "commit": "c0ffee" * 6 + "abcd", "dirty": False}
TIMING = ("seconds", "img_per_s")  # what differs between two equal runs


def rows_of(folder: Path, without: str | tuple[str, ...] = ()) -> list[dict]:
    """The epochs of a run, as metrics.jsonl has them; without: what the names left out begin with."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(without)} for row in rows]


def write_run(root: Path, line: str, accuracies: Sequence[float], *, teacher: str | None = None, alone: bool = False):
    """line: flags of train_student.py (train_teacher.py where teacher is the empty string). One accuracy per epoch."""
    is_teacher = teacher == ""
    argv = ["--save_root", str(root), *line.split()]
    settings = parse(argv, teacher=is_teacher)
    folder = folder_of(settings, None if alone or is_teacher else teacher).models
    folder.mkdir(parents=True)
    identity = settings.identity | {"precision": "fp32", "data": "d", "test_data": "t", "teacher": "x"}
    rows = []
    for epoch, accuracy in enumerate(accuracies, 1):
        rows.append(
            {
                "stage": 0,
                "epoch": epoch,
                "lr": 0.05,
                "train_loss": 4 / epoch,
                "train_acc": accuracy,
                "test_acc": accuracy,
            }
            | {
                "test_acc_top5": accuracy + 20,
                "test_loss": 3 / epoch,
                "train_cls": 2 / epoch,
                "seconds_total": 9.0 * epoch,
            }
            | {"seconds_train": 8.0, "seconds_eval": 1.0, "img_per_s": 100.0}
        )
    top = max(rows, key=lambda row: row["test_acc"])
    parameters = settings.as_dict() | {
        "Total params": 0.1,
        "Deployed params": 0.1,
        "Deployed MACs": 12.5,
        "num_classes": 100,
        "arch_t": None if is_teacher or alone else teacher,
        "Total time": 0.5,
        "teacher_acc": None if is_teacher or alone else 79.42,
        "evaluated_on": "test",
        "lanes": [folder.name],
        "last": rows[-1],
        "best": {"test_acc": top["test_acc"], "epoch": top["epoch"]},
    }
    described = {
        "identity": identity,
        "settings": settings.as_dict(),
        "sources": settings.sources,
        "without_effect": {},
        "seed": settings.run.seed,
        "command": argv,
    }
    for name, content in (("args", described), ("parameters", parameters), ("env", ENVIRONMENT | {"command": argv})):
        remember(content, folder / f"{name}.json")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
