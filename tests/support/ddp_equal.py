"""Trains small nets for some steps as one of several processes: torchrun ddp_equal.py OUT STEPS NORM...

NORM: batch, or none for a net without batch norm, or accumulated for the latter with two micro-batches a step. train()
does the same alone; with `parts`, every batch is run as that many micro-batches, each normalised by itself, as several
processes do it. The file of a process also says how often gradients were averaged ("reduced").
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402 (a script: the paths come first)
from torch import nn  # noqa: E402
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks  # noqa: E402

from core import machine  # noqa: E402
from core.protocols import ModelSpec, Progress  # noqa: E402
from dataset.images.resident import ResidentData, Split  # noqa: E402
from distiller_zoo import method_dict  # noqa: E402
from helper.machine import distributed  # noqa: E402
from helper.networks.checkpoint import Checkpoint  # noqa: E402
from helper.networks.load import Network  # noqa: E402
from helper.training.optim import OptimConfig, optimizer  # noqa: E402
from helper.training.stages import StagePlan, build_stages  # noqa: E402
from helper.training.step import StepSetup  # noqa: E402
from tests.support.toys import CNN_FEATS, CNN_TAPS, IMG, ToyCNN, cnn  # noqa: E402


class Plain(ToyCNN):
    """The toy network, normalised by nothing."""

    def __init__(self, num_classes):
        super().__init__(8, num_classes)
        for stage in (self.stem, self.stage1, self.stage2):
            stage[1] = nn.Identity()


PLAIN = ModelSpec("plain", Plain, CNN_TAPS, CNN_FEATS, "fc", input_shape=IMG)
SPECS = {"batch": cnn(8), "none": PLAIN, "accumulated": PLAIN}
reduced = 0  # buckets of gradients; these nets fill one


def counted(module: nn.Module) -> nn.Module:
    """The module as runs wrap it, with every exchange of gradients counted."""

    def hook(state, bucket):
        global reduced
        reduced += 1
        return default_hooks.allreduce_hook(state, bucket)

    wrapped = distributed.ddp(module)
    if wrapped is not module:
        wrapped.register_comm_hook(None, hook)
    return wrapped


def data(count=203):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=g)
    labels = torch.arange(count) % 5
    return ResidentData("toy", list("abcde"), Split(images, labels), Split(images[:53], labels[:53]), flips=True)


def train(norm: str, steps: int, parts: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    spec, method, toy, device = SPECS[norm], method_dict["kd"], data(), torch.device("cpu")
    world = distributed.world_size()
    teacher = Network(cnn(6), cnn(6)(num_classes=5), Checkpoint(Path("toy"), {}))
    (stage,) = build_stages(
        method,
        method.Config(),
        spec,
        teacher,
        toy,
        StepSetup(
            optimizer(OptimConfig(momentum=0.9, weight_decay=0.0005), 0.05),
            device=device,
            accumulate=parts,
            wrap=counted,
        ),
        StagePlan(batch_size=64 // world, epochs=10),
    )
    step = stage.step
    loader = toy.train_loader(64, seed=0, device=device, rank=machine.rank(), world_size=world)
    step.train()
    done = 0
    for epoch in range(1, 99):
        loader.set_epoch(epoch)
        for i, batch in enumerate(loader):
            if i == 3:  # the short last batch is cut down to what all can share
                continue
            step(batch, Progress(epoch, 10, i, 4))
            done += 1
            if done == steps:
                distributed.share_statistics(step.trained)
                return {**step.trained.state_dict(), "reduced": torch.tensor(reduced)}
    raise AssertionError


def main():
    global reduced
    out, steps, *norms = sys.argv[1:]
    torch.set_num_threads(1)
    with distributed.process_group("gloo", 50):
        for norm in norms:
            reduced = 0
            torch.save(train(norm, int(steps), 1 + (norm == "accumulated")), f"{out}.{norm}.{machine.rank()}")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
