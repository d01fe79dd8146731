#!/usr/bin/env python3
"""Evaluate any checkpoint: python test_model.py --path FILE --dataset cifar100 --data_folder ../data/

On several GPUs: --gpu_id 0,1,2,3 --multiprocessing_distributed, or torchrun; each process evaluates its own share.
"""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

from helper.options import quick

if __name__ == "__main__":
    quick.answer("test_model.py")  # --help, without waiting for torch

import sys
import time
from pathlib import Path

import torch

from core import machine
from core.files import atomic_write_text, make_folder, refuse_folder
from core.log import log, start_log
from core.machine import usable_cores
from core.option import add_flags, checked, plausible, positive, read, whole
from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import LARGEST_IMAGE, few_workers
from dataset.clips.views import TestViews
from dataset.images.resident import ResidentData
from helper.deploy.as_trained import (
    AS_TRAINED,
    add_data_set,
    add_network,
    clip_settings_notice,
    dataset_of,
    options_asked,
)
from helper.deploy.checkpoint_page import Seen, page
from helper.deploy.cost import deployed_count, macs
from helper.deploy.predictor import open_predictor
from helper.evaluation.evaluate import evaluate_views, near_chance
from helper.machine import distributed
from helper.machine.devices import own_device, pick_autocast
from helper.machine.distributed import LAUNCH, LaunchConfig
from helper.machine.kernels import to_device
from helper.machine.program import run_script
from helper.networks.classes import matched
from helper.networks.load import evaluation_notice, load_network, with_normalisation
from helper.options.old_flags import Parser
from helper.options.plugins import load_plugins


def launch_flags(args):
    """Those of several processes that were given."""
    return [f"--{f.dest}" for f in LAUNCH if getattr(args, f.dest) != f.default]


def parser():
    parser = Parser("test_model.py", description=__doc__, add_help=False)
    quick.add_help(parser)
    add = parser.add_argument
    text = "checkpoint: a student, a teacher, or a plain state dict; or the folder of a run"
    add_network(parser, text, ("--path", "--student_weights"), ("--model", "--arch"))
    text = "mean of the pixels, which are in [0, 1] (default: the network's)"
    add("--mean", type=float, action=checked(plausible), nargs="+", help=text)
    text = "standard deviation of the pixels; mean 0.5 and std 0.5 mean pixels in [-1, 1]"
    add("--std", type=float, action=checked(positive), nargs="+", help=text)
    add("--match_classes", action="store_true", help="reorder the network's logits to the data set's order of classes")
    add_data(parser)
    text = "how to average several views (default: as the network does)"
    add("--average_clips", choices=("prob", "score"), help=text)
    add_views(parser)
    add_flags(parser.add_argument_group("several processes"), LAUNCH)
    text = "precision of the forward pass (default fp32, as in tables)"
    add("--precision", default="fp32", choices=("fp32", "bf16"), help=text)
    text = "write a page of classes, confusions, worst mistakes and calibration to this file"
    add("--report", type=Path, help=text, metavar="FILE")
    add("--plugin", nargs="+", default=(), help="Python files that define the method or model", metavar="FILE")
    return parser


def add_data(parser):
    """The flags that choose the samples and how they are read."""
    add_data_set(parser, folder=("--data_folder", "--data"))
    add = parser.add_argument
    add("--train_images", action="store_true", help="evaluate on the training images, without augmentation")
    add("--file", type=Path, help="predict this recording, picture or video; needs no data set", metavar="FILE")
    text = "modality of action recordings that the network reads (default: as in training)"
    add("--modality", help=text, metavar="NAME")
    add("--data_split", help="published split of action recordings", metavar="NAME")
    add("--clip_cache", type=Path, default=Path("./cache/clips"), help="folder for decoded frames", metavar="FOLDER")
    add("--skip_corrupt", "--skip_bad", action="store_true", help="skip damaged recordings")
    add("--batch_size", **whole(1), default=500, help="samples per forward pass in each process (default 500)")
    add("--gpu_id", help="GPU to use, or several (default 0; with torchrun one per process)", metavar="GPUS")
    add("--manual_seed", "--seed", help="accepted for old commands, without effect: evaluation draws no random numbers")
    text = "loader processes per machine, for data read from disk (default 8)"
    add("--num_workers", type=int, action=checked(few_workers), default=8, help=text)


def add_views(parser):
    views = parser.add_argument_group("views of a video")
    add, text = views.add_argument, "temporal clips: 2 with uniform sampling, any with dense (default 1)"
    add("--clips", **whole(1, 1000), default=1, help=text, metavar="N")
    add("--crops", default="one", choices=("one", "three", "ten"), help="crops of each frame (default one)")
    add("--crop_size", **whole(8, LARGEST_IMAGE), help="side of the crops (default --image_size)")
    add_flags(views, AS_TRAINED)


def main(argv=None):
    args = parser().parse_args(quick.normalised(argv))
    start_log()
    load_plugins(args.plugin)

    if args.file is not None:
        if given := launch_flags(args):
            raise UserError(f"--file is read by one process: leave {', '.join(given)} out")
        if args.report is not None:
            raise UserError("--report needs a test set, but --file names one recording: leave one of them out")
        if args.train_images:
            raise UserError("--train_images reads a data set, but --file names one recording: leave one of them out")
        (found,) = open_predictor(args.path, args.model, args.image_size)([args.file], 3)
        for action, probability in found.top:
            log.info("%s  %.1f %%", action, 100 * probability)
        return
    if args.report is not None:  # before the evaluation, which may take hours
        refuse_folder(args.report.parent)
        if args.report.is_dir():
            raise UserError(f"--report {args.report} is a folder: name a file")
    named, args.gpu_id = args.gpu_id is not None, "0" if args.gpu_id is None else args.gpu_id
    argv = sys.argv[1:] if argv is None else argv
    launch = read(LaunchConfig, vars(args))
    distributed.in_processes(launch, args.gpu_id, argv, lambda: report(args, own_device(args.gpu_id, named=named)))


def open_network(args, data):
    network = load_network(args.path, args.model, data.num_classes, data.shapes, flag="--model")
    network = matched(network, data.classes, args.match_classes)
    network = with_normalisation(network, args.mean, args.std, ("--mean", "--std"))
    for notice in evaluation_notice(network, data.shapes):
        log.info(notice)
    return network


def evaluation_loader(args, data, device, views):
    """(loader, name of the samples in the log). views: of a video."""
    share = {"device": device, "rank": machine.rank(), "world_size": distributed.world_size()}
    if not args.train_images:
        return data.test_loader(args.batch_size, **share, **views), data.evaluated_on
    if not isinstance(data, ResidentData):
        raise UserError(
            f"--train_images needs images held in memory, but --dataset {data.name} is read from disk: if it is a tree "
            "of images, name its training folder with --val_dir"
        )
    return data.train_in_order(args.batch_size, **share), "train, not augmented"


def notice_training(model):
    """The training batches that a batch norm counted, if any did."""
    counts = [int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    if any(counts):
        log.info("batch norm counted %d training batches", min(filter(None, counts)))


def notice_doubts(network, data, acc):
    """Whether the accuracy is that of chance, or not the recorded one."""
    flags, shape = ("--mean", "--std", "--match_classes"), data.shapes[network.spec.input]
    if warning := near_chance(acc, data.num_classes, network.spec, shape, flags):
        log.info("%s", warning)
    recorded = network.checkpoint.best_acc
    if recorded is not None:
        rounding = network.checkpoint.rounding
        differs = f"  (warning: more than {rounding} apart)" if abs(recorded - acc) > rounding else ""
        log.info("recorded in the file: %.2f in %s%s", recorded, network.checkpoint.evaluated_in, differs)


def report(args, device):
    if (given := launch_flags(args)) and distributed.world_size() == 1:
        log.info("without effect here: %s (one process)", ", ".join(given))
    args.dataset = dataset_of(args.path, args.dataset)
    workers = min(-(-args.num_workers // machine.local_world_size()), usable_cores())
    options = options_asked(args.path, args, num_workers=workers)
    data = distributed.main_first(lambda: dataset_dict[args.dataset](options))
    for note in data.notes:
        log.info(note)
    chosen = {"clips": args.clips, "crops": args.crops, "size": args.crop_size}
    given = {k: v for k, v in chosen.items() if v not in (None, 1, "one")}
    if given and not data.videos:
        raise UserError(f"--dataset {args.dataset} is not a list of videos: leave --clips, --crops and --crop_size out")
    if data.videos and (clips := clip_settings_notice(args.path, options)):
        log.info(clips)
    network = open_network(args, data)
    net = to_device(network.tapped(network.spec.branches), device).eval()
    autocast = pick_autocast(args.precision, device)

    def predict(inputs):
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            out = net(inputs)
        heads = {name: out[name].unflatten(1, (data.num_classes, -1)).sum(2) for name in network.spec.branches}
        return {"student": out["logits"], **heads}

    started = time.monotonic()
    loader, part = evaluation_loader(args, data, device, {"views": TestViews(**given)} if given else {})
    how = args.average_clips or network.spec.published.average_clips
    if args.report is not None and distributed.world_size() > 1:
        raise UserError(f"--report {args.report} is written by one process: leave the flags of several processes out")
    seen = Seen(network.spec.input)
    found = evaluate_views(predict, loader, device, data.num_classes, how, seen if args.report else None)
    result = found["student"]
    seconds = time.monotonic() - started
    samples = int(result["samples"])
    on = f"{data.name} ({part})"
    log.info("%s (%s) on %s, %d samples, %s", args.path, network.spec.name, on, samples, args.precision)
    log.info(
        "top-1 %.2f  top-5 %.2f  mean class %.2f  loss %.4f",
        *(result[k] for k in ("acc", "acc_top5", "acc_mean_class", "loss")),
    )
    if given:
        log.info("each sample seen in %s, averaged by %s", ", ".join(f"{k} {v}" for k, v in given.items()), how)
    for name in network.spec.branches:  # auxiliary: of classes alone, the sum over rotations, on upright images
        log.info("%s top-1 %.2f  top-5 %.2f", name, found[name]["acc"], found[name]["acc_top5"])
    if not args.train_images:
        notice_doubts(network, data, result["acc"])
    notice_training(network.model)
    count = deployed_count(net.model)
    log.info(
        "parameters %d (%.3f M)  MACs %.1f M per sample  %.0f img/s%s",
        count,
        count / 1e6,
        macs(to_device(network.tapped(), device), data.shapes, device) / 1e6,
        samples / seconds,
        " with its heads" if network.spec.branches else "",
    )
    if args.report is not None:
        title = f"{network.spec.name} on {on}"
        make_folder(args.report.parent)
        atomic_write_text(
            args.report, page(seen, list(map(str, data.classes)), title, f"{args.path}, {args.precision}")
        )
        log.info("wrote %s", args.report)


if __name__ == "__main__":
    run_script(main)
