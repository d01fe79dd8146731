#!/usr/bin/env python3
"""Distances of classes for wkd_l: python scripts/class_distances.py --path_t T.pth --dataset cifar100 --out FILE

1 - linear CKA of the teacher's last map on the training images, without augmentation: every place of every image of a
class is one row (Lv et al., NeurIPS 2024). All classes are cut to the number of images of the smallest. The file holds
a tensor [K, K]; train_student.py reads it with --distill wkd_l --wkd_l_cost FILE.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import atomic_save, make_folder
from core.log import log, start_log
from core.protocols import UserError
from core.taps import TappedNet
from dataset import dataset_dict
from dataset.base import DataOptions
from dataset.images.files import scaled
from dataset.images.resident import ResidentData
from distiller_zoo._stages import classified_map
from distiller_zoo.wkd_l import cka_distances
from helper.machine.devices import pick_device
from helper.machine.kernels import to_device
from helper.machine.program import ScriptParser, run_script
from helper.networks.checkpoint import CheckpointOf
from helper.networks.load import load_network
from helper.options.quick import normalised

BATCH = 250


def parse(argv):
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    text = "checkpoint of the teacher, or the folder of its run"
    add("--path_t", required=True, action=CheckpointOf, help=text, metavar="FILE")
    add("--model_t", help="the teacher's architecture, if neither the file nor its path names it", metavar="NAME")
    add("--dataset", default="cifar100", help="any set of images held in memory", metavar="NAME")
    add("--data_folder", default="../data/", help="folder of the data sets", metavar="FOLDER")
    add("--gpu_id", default="0", help="GPU to use (default 0; without CUDA the CPU)", metavar="GPUS")
    add("--out", required=True, type=Path, help="file to write", metavar="FILE")
    return parser.parse_args(normalised(argv))


@torch.no_grad()
def class_features(net: TappedNet, tap: str, images: Tensor, labels: Tensor, device: torch.device) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [K, n * h * w, D] on the CPU: rows of the tapped map, images in order."""
    size = int(labels.bincount().min())
    if not size:
        raise UserError("a class has no training images: use data with images of every class")
    classes = []
    for label in range(int(labels.max()) + 1):
        chosen = images[(labels == label).nonzero().flatten()[:size]]
        maps = [net({net.spec.input: scaled(chunk.to(device))})[tap].float().cpu() for chunk in chosen.split(BATCH)]
        classes.append(torch.cat(maps).flatten(2).mT.flatten(0, 1))
    return torch.stack(classes)


def main(argv=None):
    args = parse(argv)
    start_log()
    make_folder(args.out.parent)
    device, notice = pick_device(args.gpu_id)
    if notice:
        log.info(notice)
    data = dataset_dict[args.dataset](DataOptions(root=Path(args.data_folder)))
    if not isinstance(data, ResidentData):
        raise UserError(
            f"--dataset {args.dataset} is not held in memory: choose a set of images that is, such as cifar100, or "
            "train with --wkd_l_cost classifier"
        )
    network = load_network(args.path_t, args.model_t, data.num_classes, data.shapes)
    tap = classified_map(network.spec, "wkd_l")
    net = to_device(TappedNet(network.model, network.spec, (tap,)), device).eval()
    features = class_features(net, tap, data.train_images, data.train_labels, device)
    log.info("%d classes, %d rows each of width %d, from %s of %s", *features.shape, tap, network.spec.name)
    atomic_save(cka_distances(features.to(device)).cpu(), args.out)
    log.info("wrote %s", args.out)


if __name__ == "__main__":
    run_script(main)
