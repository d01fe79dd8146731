#!/usr/bin/env python3
"""Make a folder for --unlabelled: python scripts/cifar100/rest.py --few_ratio 0.1 --out DIR

It holds the training images that a run with this --few_ratio and --seed leaves out, as PNG files without labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import make_folder
from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import DataOptions, few
from dataset.images.resident import ResidentData
from helper.machine.program import ScriptParser, run_script
from helper.options.quick import normalised


def parse(argv):
    parser = ScriptParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar100", help="a set of images held in memory", metavar="NAME")
    parser.add_argument("--data_folder", "--data", default="../data/", help="folder of the data", metavar="FOLDER")
    parser.add_argument("--few_ratio", type=float, required=True, help="--few_ratio of the run")
    parser.add_argument("--seed", type=int, default=0, help="--seed of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images", metavar="FOLDER")
    return parser.parse_args(normalised(argv))


def main(argv=None):
    from PIL import Image

    args = parse(argv)
    data = dataset_dict[args.dataset](DataOptions(root=Path(args.data_folder)))
    if not isinstance(data, ResidentData):
        raise UserError(f"--dataset {args.dataset} is not an image set held in memory: choose cifar100 or cifar10")
    left = torch.ones(len(data.train_labels), dtype=torch.bool)
    left[few(data.train_labels, args.few_ratio, args.seed)] = False
    make_folder(args.out, "folder of images")
    for place in left.nonzero().flatten().tolist():
        Image.fromarray(data.train_images[place].numpy()).save(args.out / f"{place:06d}.png")
    print(f"{int(left.sum())} images in {args.out}")


if __name__ == "__main__":
    run_script(main)
