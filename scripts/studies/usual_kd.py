#!/usr/bin/env python3
"""KD in the published loop, next to a run of this toolbox over the same epochs.

    python scripts/studies/usual_kd.py --run RUN_FOLDER --data_folder ../data/ --state FILE --out TABLE.md

Trains the run's student from the run's teacher with the run's settings, but in float32, uncompiled, on torchvision's
transforms of PIL images, with a literal loop. FILE is written after each epoch; the same command resumes. The table
has loss, training and test accuracy of both by epoch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_save, read_json
from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import DataOptions
from helper.machine.program import ScriptParser, run_script
from helper.networks.checkpoint import load_file, weights_in
from helper.networks.load import load_network
from helper.options.quick import normalised
from helper.runs.folder import environment
from helper.tables.runs import read_run
from helper.tables.writers import as_markdown, publish
from models import model_dict
from scripts.bench.usual_way import PilImages, top_k

LITERAL = {"schedule": "step", "optimizer": "sgd", "momentum": 0.9, "few_ratio": 1.0}  # of the loop below
COLUMNS = ("train_loss", "train_acc", "test_acc")


def kd_loss(cfg: dict[str, Any], logits: Tensor, taught: Tensor, target: Tensor) -> Tensor:
    """-r times cross-entropy plus -a times T^2 KL, mean over B. logits, taught: [B, K]; target: [B]."""
    t = cfg["kd_T"]
    kl = F.kl_div(F.log_softmax(logits / t, 1), F.softmax(taught / t, 1), reduction="sum") * t**2 / len(logits)
    return cfg["cls"] * F.cross_entropy(logits, target) + cfg["div"] * kl


def train_epoch(
    cfg: dict[str, Any], student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader
) -> tuple[float, float]:
    """(mean loss, top-1 in percent)."""
    student.train()
    loss_sum, right = 0.0, 0.0
    for images, target in loader:
        logits = student(images)
        with torch.no_grad():
            taught = teacher(images)
        loss = kd_loss(cfg, logits, taught, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(target)
        right += top_k(logits, target)[0].item() * len(target)
    return loss_sum / len(loader.dataset), right / len(loader.dataset)


@torch.no_grad()
def tested(student: nn.Module, loader: DataLoader) -> float:
    student.eval()
    return sum(top_k(student(x), y)[0].item() * len(y) for x, y in loader) / len(loader.dataset)


def usual_run(cfg: dict[str, Any], path_t: str, data_folder: Path, state: Path) -> list[dict[str, float]]:
    """COLUMNS of every epoch. Continues from `state`."""
    torch.manual_seed(cfg["seed"])
    data: Any = dataset_dict[cfg["dataset"]](DataOptions(data_folder))
    spec = model_dict[cfg["model_s"]]
    student = spec(num_classes=data.num_classes)
    teacher = load_network(weights_in(path_t), cfg["model_t"], data.num_classes, data.shapes).model.eval()
    train = PilImages(data.train_images.numpy(), data.train_labels.numpy(), spec)
    if not data.flips:
        del train.transform.transforms[1]
    images, labels = data.on("test", torch.device("cpu"))
    test = PilImages(images.numpy(), labels.numpy(), spec)
    test.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)])
    loader = DataLoader(train, cfg["batch_size"], shuffle=True)
    optimizer = torch.optim.SGD(student.parameters(), cfg["learning_rate"], 0.9, weight_decay=cfg["weight_decay"])
    rows: list[dict[str, float]] = []
    if state.exists():
        saved = load_file(state, "delete it", expect_checksum=True)
        if len(saved["rows"]) > cfg["epochs"]:
            raise UserError(f"{state} is after {len(saved['rows'])} epochs, the run has {cfg['epochs']}: name another")
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        rows = saved["rows"]
    decays = {int(e) for e in cfg["lr_decay_epochs"].split(",")}
    for epoch in range(len(rows) + 1, cfg["epochs"] + 1):
        started = time.monotonic()
        if epoch - 1 in decays:
            optimizer.param_groups[0]["lr"] *= cfg["lr_decay_rate"]
        loss, acc = train_epoch(cfg, student, teacher, optimizer, loader)
        speed = len(train) / (time.monotonic() - started)
        rows.append(dict(zip(COLUMNS, (loss, acc, tested(student, DataLoader(test, 500))), strict=True)))
        print(f"epoch {epoch}: {rows[-1]}, {speed:.0f} img/s", flush=True)
        parts = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
        atomic_save({**parts, "random": torch.get_rng_state(), "rows": rows}, state)
    return rows


def report(cfg: dict[str, Any], ours: list[dict[str, float]], usual: list[dict[str, float]]) -> str:
    header = ["epoch", "learning rate"]
    for name in ("loss", "train", "test"):
        header += [name, f"{name}, published loop"]
    rows = []
    for here, there in zip(ours, usual, strict=True):
        cells = [format(row[name], ".3f" if "loss" in name else ".2f") for name in COLUMNS for row in (here, there)]
        rows.append([str(here["epoch"]), f"{here['lr']:.2g}", *cells])
    compiled = " and ".join(cfg["compile_parts"] or ()) if cfg["compile"] != "none" else "nothing"
    notes = [
        f"Complete {cfg['dataset']}, {cfg['epochs']} epochs, batch {cfg['batch_size']}, learning rate "
        f"{cfg['learning_rate']} times {cfg['lr_decay_rate']} after {cfg['lr_decay_epochs']}, weight decay "
        f"{cfg['weight_decay']}, loss {cfg['cls']} cross-entropy + {cfg['div']} KL at T = {cfg['kd_T']}, seed "
        f"{cfg['seed']}. train: top-1 on the augmented images, during training. This toolbox: {cfg['precision']}, "
        f"compiled: {compiled}. Published loop: scripts/studies/usual_kd.py, float32, uncompiled, torchvision's "
        "transforms of PIL images. The two draw different random numbers, so they differ as two seeds do.",
        f"Hardware: {environment()['cpu']}.",
    ]
    title = f"# KD by this toolbox and by the published loop: {cfg['model_t']} teaches {cfg['model_s']}"
    return f"{title}\n\n{as_markdown(header, rows, notes)}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="finished run of kd on a set of images in memory", metavar="FOLDER")
    add("--data_folder", type=Path, default=Path("../data/"), help="folder of the data sets", metavar="FOLDER")
    add("--state", type=Path, required=True, help="file for the literal loop's state", metavar="FILE")
    add("--out", type=Path, required=True, help="table to write", metavar="FILE")
    args = parser.parse_args(normalised(argv))
    cfg = read_json(args.run / "args.json", {"settings": dict}, "give the folder of a finished run")["settings"]
    if cfg.get("distill") != "kd" or len(cfg["path_t"]) != 1:
        raise UserError(f"{args.run} is not a run of --distill kd with one teacher")
    if other := next((name for name, value in LITERAL.items() if cfg.get(name, value) != value), None):
        raise UserError(f"{args.run} has --{other} {cfg[other]}, the literal loop {LITERAL[other]}: give another run")
    if (run := read_run(args.run)) is None:
        raise UserError(f"{args.run} is not finished: finish it first")
    publish(report(cfg, run.rows, usual_run(cfg, cfg["path_t"][0], args.data_folder, args.state)), args.out)


if __name__ == "__main__":
    run_script(main)
