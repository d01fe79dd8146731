#!/usr/bin/env python3
"""How far the choice of a tenth of the training images changes the result of similarity in the published loop.

    python scripts/studies/tenths.py --teacher RESNET20.pth --data_folder ../data/ --out TABLE.md

Trains resnet8 for ten epochs on each tenth of CIFAR-100, in float32, with torchvision's transforms of PIL
images and a literal loop: batch 64 with a smaller last one, learning rate 0.05 times 0.1 after epochs 6 and 8.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.option import whole
from dataset import dataset_dict
from dataset.base import DataOptions, few
from dataset.images.resident import ResidentData
from helper.machine.program import ScriptParser, run_script
from helper.networks.checkpoint import CheckpointOf
from helper.networks.load import load_network
from helper.options.quick import normalised
from helper.runs.folder import environment
from helper.tables.writers import as_markdown, publish
from models import model_dict
from scripts.bench.usual_way import PilImages, WithFeatures
from scripts.studies.usual_kd import kd_loss, tested

EPOCHS, DECAYS, BATCH = 10, (6, 8), 64


def similarity(f_s: Tensor, f_t: Tensor) -> Tensor:
    """||G_t - G_s||_F^2 / B^2; G: [B, B] inner products of the maps [B, ...], rows of unit length."""
    g_s, g_t = (F.normalize(f.flatten(1) @ f.flatten(1).T) for f in (f_s, f_t))
    return (g_t - g_s).pow(2).sum() / len(f_s) ** 2


def tenths(labels: Tensor, seeds: int) -> dict[str, Tensor]:
    """Description -> positions of the training images."""
    found = {f"`--few_ratio 0.1`, seed {seed}": few(labels, 0.1, seed) for seed in range(seeds)}
    found["first tenth of each class"] = torch.cat([(labels == c).nonzero().flatten()[:50] for c in labels.unique()])
    found["first 5000 images"] = torch.arange(5000)
    return found


def trained(data: ResidentData, positions: Tensor, teacher: nn.Module, seed: int) -> float:
    """Test accuracy of the student, in percent."""
    torch.manual_seed(seed)
    spec = model_dict["resnet8"]
    student = WithFeatures(spec(num_classes=data.num_classes), spec)
    part = data.train_images[positions].numpy(), data.train_labels[positions].numpy()
    test = PilImages(data.test.images.numpy(), data.test.labels.numpy(), spec)
    test.transform = transforms.Compose(test.transform.transforms[2:])  # no crop, no flip
    optimizer = torch.optim.SGD(student.parameters(), 0.05, 0.9, weight_decay=5e-4)
    loader = DataLoader(PilImages(*part, spec), BATCH, shuffle=True)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] *= 0.1 if epoch in DECAYS else 1
        student.train()
        for x, target in loader:
            maps_s, z_s = student(x)
            with torch.no_grad():
                maps_t, z_t = teacher(x)
            loss = kd_loss({"kd_T": 4.0, "cls": 1.0, "div": 1.0}, z_s, z_t, target)
            loss = loss + 3000 * similarity(maps_s[-2], maps_t[-2])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    plain = spec(num_classes=data.num_classes)  # keeps no features
    plain.load_state_dict(student.model.state_dict())
    return tested(plain, DataLoader(test, 500))


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    text = "checkpoint of resnet20 on CIFAR-100, or the folder of its run"
    add("--teacher", required=True, action=CheckpointOf, help=text, metavar="FILE")
    add("--data_folder", type=Path, default=Path("../data/"), help="folder of the data sets", metavar="FOLDER")
    add("--seeds", **whole(1), default=3, help="seeds per tenth, and tenths of --few_ratio")
    add("--out", type=Path, required=True, help="table to write", metavar="FILE")
    args = parser.parse_args(normalised(argv))
    data = dataset_dict["cifar100"](DataOptions(args.data_folder))
    network = load_network(args.teacher, "resnet20", data.num_classes, data.shapes)
    teacher = WithFeatures(network.model.eval(), network.spec)
    rows = []
    for name, positions in tenths(data.train_labels, args.seeds).items():
        found = [trained(data, positions, teacher, seed) for seed in range(args.seeds)]
        spread = f" ± {stdev(found):.2f}" if len(found) > 1 else ""
        rows.append([name, *(f"{top1:.2f}" for top1 in found), f"{mean(found):.2f}{spread}"])
        print(*rows[-1], sep="  ", flush=True)
    notes = [
        f"Top-1 on the test set in percent, after {EPOCHS} epochs: batch {BATCH} and a last one of 8, learning rate "
        "0.05 times 0.1 after 6, 8, weight decay 0.0005, float32; loss: cross-entropy + KL at T = 4 + 3000 similarity. "
        "The published loop with torchvision's transforms of PIL images, scripts/studies/tenths.py.",
        f"Hardware: {environment()['cpu']}.",
    ]
    header = ["training images", *(f"seed {seed}" for seed in range(args.seeds)), "mean"]
    title = "# similarity in the published loop, on several tenths of CIFAR-100: resnet20 teaches resnet8"
    publish(f"{title}\n\n{as_markdown(header, rows, notes)}", args.out)


if __name__ == "__main__":
    run_script(main)
