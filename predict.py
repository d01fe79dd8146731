#!/usr/bin/env python3
"""Predict classes of files: python predict.py --path STUDENT.pth PICTURE.jpg FOLDER ...

It reads images, videos or sensor recordings, depending on the network, and prepares them as in the evaluation of its
data set. --path takes a checkpoint, the folder of a run, a folder of scripts/export_student.py, one of its files
(.safetensors, .onnx, .pt2) or hf_hub:USER/NAME.
"""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

from helper.options import quick

if __name__ == "__main__":
    quick.answer("predict.py")  # --help, without waiting for torch

import argparse
import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch

from core.files import atomic_write_text, make_folder
from core.log import log, start_log
from core.option import whole
from dataset.base import LARGEST_IMAGE
from helper.deploy.pictures import grid, save
from helper.deploy.predictor import Prediction, open_predictor
from helper.machine.devices import pick_device
from helper.machine.program import run_script
from helper.options.plugins import load_plugins

SHOWN = 40  # files of a grid
NO_INPUT = torch.empty(0)


def as_csv(found: Sequence[Prediction]) -> str:
    """One line for each class of each file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("file", "rank", "class", "probability"))
    for one in found:
        writer.writerows((one.file, i, name, f"{p:.6f}") for i, (name, p) in enumerate(one.top, 1))
    return out.getvalue()


def as_json(found: Sequence[Prediction]) -> str:
    rows = [{"file": str(f.file), "top": [{"class": n, "probability": p} for n, p in f.top]} for f in found]
    return json.dumps(rows, indent=1)


def title_of(one: Prediction) -> str:
    name, p = one.top[0]
    return "\n".join([*textwrap.wrap(name, 22), f"{100 * p:.0f} %"])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("predict.py", description=__doc__, add_help=False)
    quick.add_help(parser)
    add = parser.add_argument
    add("files", nargs="+", type=Path, help="files, or folders of files")
    text = "the network: a checkpoint, the folder of a run, or an exported file"
    add("--path", required=True, help=text, metavar="FILE")
    add("--model", help="architecture, if neither the file nor its path names it", metavar="NAME")
    text = "size of the images in pixels, if the file does not record it"
    add("--image_size", **whole(8, LARGEST_IMAGE), help=text)
    add("--top", **whole(1), default=3, help="number of classes to print per file (default 3)")
    add("--csv", type=Path, help="write file, rank, class and probability to this CSV file", metavar="FILE")
    add("--json", type=Path, help="write the same to this JSON file", metavar="FILE")
    add("--show", type=Path, help=f"draw the first {SHOWN} files with their classes in this .png file", metavar="FILE")
    add("--gpu_id", default="0", help="GPU to use (default 0; without CUDA the CPU)", metavar="GPUS")
    add("--plugin", nargs="+", default=(), help="Python files that define the model", metavar="FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(quick.normalised(argv))
    start_log()
    load_plugins(args.plugin)
    predictor = open_predictor(args.path, args.model, args.image_size, pick_device(args.gpu_id)[0])
    found, drawn = [], []
    for one in predictor(predictor.files(args.files), args.top):
        log.info("%s: %s", one.file, ", ".join(f"{name} {100 * p:.1f} %" for name, p in one.top))
        if args.show is not None and len(drawn) < SHOWN:
            drawn.append(one)
        found.append(dataclasses.replace(one, x=NO_INPUT))  # those of a large folder would fill the memory
    for path, text in ((args.csv, as_csv), (args.json, as_json)):
        if path is not None:
            make_folder(path.parent)
            atomic_write_text(path, text(found))
    if args.show is not None:
        save(grid([one.x for one in drawn], [title_of(one) for one in drawn]), args.show)


if __name__ == "__main__":
    run_script(main)
