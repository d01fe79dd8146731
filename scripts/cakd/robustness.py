#!/usr/bin/env python3
"""Top-1 of checkpoints on noisy test images: python scripts/cakd/robustness.py --path A.pth B.pth --data_folder DIR

Noise is Gaussian on pixels in [0, 1], clamped, from a fixed seed, equal for every checkpoint; `views` are
the transformations CAKD trains with, on every image. Every network sees images of the size it was trained at, unless
--image_size names one; px is that size. Prints a Markdown table, rows in the order given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.log import start_log
from core.option import checked, not_negative
from core.protocols import DataSet, UserError
from dataset import dataset_dict
from distiller_zoo._multiview import multi_view
from helper.deploy.as_trained import add_data_set, add_network, dataset_of, options_asked
from helper.evaluation.evaluate import evaluate
from helper.machine.devices import pick_device
from helper.machine.kernels import to_device
from helper.machine.program import ScriptParser, run_script
from helper.networks.load import load_network
from helper.options.quick import normalised
from helper.tables.writers import as_markdown, publish

SEED = 0
Spoil = Callable[[Tensor, torch.Generator], Tensor]


def noisy(sigma: float) -> Spoil:
    def spoil(x: Tensor, rng: torch.Generator) -> Tensor:
        return (x + sigma * torch.randn(x.shape, generator=rng, device=x.device)).clamp(0, 1)

    return spoil


def spoiled(
    net: torch.nn.Module, spoil: Spoil, rng: torch.Generator, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {"student": net({k: spoil(x, rng) for k, x in inputs.items()})["logits"]}


def columns(sigmas: Sequence[float]) -> dict[str, Spoil]:
    """Heading -> what happens to a batch of images."""
    if any(not 0 < sigma < 10 for sigma in sigmas):
        raise UserError(f"--noise {' '.join(map(str, sigmas))}: standard deviations must be between 0 and 10")
    noises = {f"noise {sigma:g}": noisy(sigma) for sigma in sigmas}
    return {"clean": lambda x, rng: x, **noises, "views": lambda x, rng: multi_view(x, rng, 1.0)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add_network(parser, "checkpoints, or folders of runs", nargs="+")
    add_data_set(parser)
    add(
        "--noise",
        type=float,
        action=checked(not_negative),
        nargs="+",
        default=[0.05, 0.1, 0.2],
        help="standard deviations",
    )
    add("--gpu_id", default="0", metavar="GPUS")
    add("--out", type=Path, help="also write the table to this file", metavar="FILE")
    args = parser.parse_args(normalised(argv))
    start_log()
    device, _ = pick_device(args.gpu_id)
    kinds = columns(args.noise)
    rows = []
    sets: dict[object, DataSet] = {}  # what was asked for -> the test images
    for path in args.path:
        key = name, options = dataset_of(path, args.dataset), options_asked(path, args)
        if key not in sets:
            sets[key] = dataset_dict[name](options)
        data = sets[key]
        network = load_network(path, args.model, data.num_classes, data.shapes, flag="--model")
        net = to_device(network.tapped(), device).eval()
        cells = []
        for spoil in kinds.values():
            rng = torch.Generator(device).manual_seed(SEED)
            predict = partial(spoiled, net, spoil, rng)
            result = evaluate(predict, data.test_loader(500, device=device), device)["student"]
            cells.append(f"{result['acc']:.2f}")
        size = data.shapes[network.spec.input][-1]
        rows.append([Path(path).parent.name, str(size), *cells])
    publish(as_markdown(["checkpoint", "px", *kinds], rows), args.out)


if __name__ == "__main__":
    run_script(main)
