#!/usr/bin/env python3
"""Linear probe on frozen features: python eval_rep.py --dataset STL-10 --data ./data/ --arch mobilenetV2 --s-path FILE

Every image passes the network once; then a linear classifier is fitted to what the network's own classifier reads.
"""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

from helper.options import quick

if __name__ == "__main__":
    quick.answer("eval_rep.py")  # --help, without waiting for torch

import dataclasses
from pathlib import Path

import torch

from core.files import atomic_write_json
from core.log import log, start_log
from core.option import checked, not_negative, positive, whole
from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import LARGEST_IMAGE, data_options
from dataset.images.resident import ResidentData
from helper.deploy.as_trained import add_data_set, add_network, chosen_as_trained, dataset_of
from helper.deploy.linear_probe import extract, feature_net, fit_lbfgs, fit_sgd
from helper.machine.devices import pick_autocast, pick_device
from helper.machine.kernels import to_device
from helper.machine.program import run_script
from helper.machine.seeding import seed_everything
from helper.networks.load import load_network
from helper.options.old_flags import Parser
from helper.runs.folder import environment
from helper.training.schedule import StepDecay

# of the published code; neither is what a network of CIFAR was trained with
PUBLISHED = {"stl10": ((0.5,) * 3, (0.5,) * 3), "tinyimagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
SGD, LBFGS = {"epochs": 100, "weight_decay": 0.0}, {"epochs": 500, "weight_decay": 1e-3}


def parser():
    parser = Parser("eval_rep.py", description=__doc__, add_help=False)
    quick.add_help(parser)
    add = parser.add_argument
    paths = ("--s_path", "--path", "--student_weights")
    add_network(parser, "checkpoint of any network, or the folder of a run", paths, ("--arch", "--model"))
    add_data_set(parser, "STL-10", folder=())
    add("--data", "--data_folder", default="../data/", help="folder of the data (default ../data/)", metavar="FOLDER")
    text = "sgd (the default), as published, or lbfgs, which finds the optimum"
    add("--solver", default="sgd", choices=("sgd", "lbfgs"), help=text)
    add("--epochs", **whole(1), help="epochs of SGD (default 100), or most iterations of L-BFGS (default 500)")
    text = "initial learning rate of SGD (default 0.1)"
    add("--init_lr", "--learning_rate", type=float, action=checked(positive), default=0.1, help=text)
    text = "epochs done before each decay (default 30 60 90)"
    add("--milestones", **whole(0), nargs="+", default=[30, 60, 90], help=text)
    text = "weight decay (default: 0 for sgd, 1e-3 for lbfgs)"
    add("--weight_decay", type=float, action=checked(not_negative), help=text)
    add("--batch_size", **whole(1), default=64, help="batch size of SGD (default 64)")
    text = "views of each training image (default 1): the whole image, then random crops"
    add("--views", **whole(1, 1000), default=1, help=text)
    text = "pixel statistics: the network's own (default), or those of the published probe"
    add("--norm", default="own", choices=("own", "published"), help=text)
    text = "size of the images in pixels (default: the network's design size)"
    add("--image_size", **whole(8, LARGEST_IMAGE), help=text)
    add("--few_ratio", type=float, default=1.0, help="share of the training images (default 1)")
    add("--precision", default="fp32", choices=("fp32", "bf16"), help="precision of the features (default fp32)")
    add("--manual_seed", "--seed", **whole(0, 2**63 - 1), default=0, help="random seed (default 0)")
    add("--gpu_id", default="0", help="GPU to use (default 0)", metavar="GPUS")
    add("--json", help="also write the result to this file", metavar="FILE")
    return parser


def parse(argv):
    args = parser().parse_args(quick.normalised(argv))
    for name, value in (SGD if args.solver == "sgd" else LBFGS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise UserError(f"--json {args.json}: its folder does not exist")
    return args


def main(argv=None):
    args = parse(argv)
    start_log()
    device, notice = pick_device(args.gpu_id)
    if notice:
        log.info(notice)
    seed_everything(args.manual_seed)
    seen = {"image": (3, args.image_size or 32, args.image_size or 32)}  # by a student that deploys a projector
    network = load_network(args.s_path, args.arch, None, seen, flag="--arch")
    args.dataset = dataset_of(args.s_path, args.dataset, "STL-10")
    same = network.checkpoint.meta.get("dataset") == dataset_dict.resolve(args.dataset)
    chosen = chosen_as_trained(network.checkpoint.meta if same else {}, vars(args))
    options = data_options(args.data, few_ratio=args.few_ratio, seed=args.manual_seed, **chosen)
    if network.spec.input != "image":
        raise UserError(f"{network.spec.name} reads {network.spec.input}, but a probe uses single images")
    data = dataset_dict[args.dataset](options)
    if not isinstance(data, ResidentData):
        raise UserError(
            f"--dataset {args.dataset} is not an image set held in memory: choose STL-10, TinyImageNet, cifar100, or "
            "folder for a tree of images"
        )
    size = args.image_size or network.spec.input_shape[-1]
    norm = PUBLISHED.get(data.name, (None, None)) if args.norm == "published" else (None, None)
    net = to_device(feature_net(network, *norm), device)
    rng, autocast = torch.Generator().manual_seed(args.manual_seed), pick_autocast(args.precision, device)
    x = extract(net, data.train_images, size, device, views=args.views, rng=rng, autocast=autocast)
    train = x, data.train_labels.to(device).repeat(args.views)
    test = extract(net, data.test.images, size, device, autocast=autocast), data.test.labels.to(device)
    log.info("%s on %s: %d + %d features of width %d", network.spec.name, data.name, len(x), len(test[0]), x.shape[1])
    if args.solver == "lbfgs":
        result = fit_lbfgs(train, test, data.num_classes, iterations=args.epochs, weight_decay=args.weight_decay)
    else:
        schedule = StepDecay(args.init_lr, tuple(args.milestones), 0.1)
        kwargs = {"epochs": args.epochs, "batch_size": args.batch_size, "weight_decay": args.weight_decay}
        result = fit_sgd(train, test, data.num_classes, schedule=schedule, seed=args.manual_seed, **kwargs)
    log.info("top-1 %.2f  top-5 %.2f  (train %.2f)", result.top1, result.top5, result.train_top1)
    if args.solver == "sgd":
        log.info("best %.2f in epoch %d, chosen on the test set", result.best, result.best_epoch)
    if args.json:
        found = {"network": network.spec.name, "checksums": [data.checksum, data.test_checksum]}
        found |= {"images": [len(data.train_labels), len(data.test)], **dataclasses.asdict(result)}
        atomic_write_json(vars(args) | found | {"environment": environment()}, args.json)


if __name__ == "__main__":
    run_script(main)
