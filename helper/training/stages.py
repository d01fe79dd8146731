"""Builds a training from the settings: tap needs of the method, optimisers, and the chain of stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from core.log import log
from core.option import RESULT, Config, at_least, option
from core.protocols import Context, DataSet, ModelSpec, Progress, Side, TeacherSource, UserError
from core.taps import TappedNet, probe
from distiller_zoo._task import chain_of, needs_of, union_of_needs
from distiller_zoo.base import Distiller
from helper.machine import distributed
from helper.machine.kernels import to_device
from helper.networks.load import Network
from helper.training.ema import EmaConfig
from helper.training.fake_quant import QuantizeConfig
from helper.training.optim import OptimConfig, regroup, tsm_multipliers
from helper.training.schedule import ScheduleConfig
from helper.training.step import DistillStep, StepSetup


@dataclass(frozen=True)
class LoopConfig(Config):
    heading = "batches and steps"

    batch_size: int = option(
        64, "batch size over all processes (default 64; depends on the data set)", check=at_least(1), role=RESULT
    )
    accumulate: int = option(1, "micro-batches per optimiser step", check=at_least(1), role=RESULT)
    max_steps: int | None = option(
        None, "stop every epoch after this many steps (for a trial run)", check=at_least(1, 10**9), role=RESULT
    )
    print_freq: int = option(200, "steps between progress lines in the log", check=at_least(1))
    eval_freq: int = option(
        1,
        "evaluate after every so many epochs and after the last; the best epoch is one of those",
        check=at_least(1),
        role=RESULT,
    )
    eval_precision: str = option(
        "auto",
        "precision of evaluation: fp32; train: as in training; auto: as in training, and float32 after the last epoch, "
        "which tables report",
        choices=("auto", "fp32", "train"),
        role=RESULT,
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained."""

    schedule: ScheduleConfig = ScheduleConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    loop: LoopConfig = LoopConfig()
    quantize: QuantizeConfig = QuantizeConfig()


def describe_method(method: Distiller, teacher: Side | None) -> dict[str, Any]:
    """The method in a checkpoint's meta; enough to rebuild its deployed layers."""
    cfg, deployment = method.cfg, method.deployment()
    config = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name != "members"}
    if deployment is not None:
        config |= {f.name: getattr(deployment.cfg, f.name) for f in dataclasses.fields(deployment.cfg)}
    return {
        "method": method.name,
        "config": config,
        "deploys": None if deployment is None else deployment.method,
        "arch_t": None if teacher is None else teacher.spec.name,
        "shapes_t": {} if teacher is None else {k: list(v) for k, v in teacher.shapes.items()},
    }


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its step, its length, whether it is the method itself, and its own learning rate if any."""

    step: DistillStep
    teacher: Side | None
    epochs: int
    index: int
    final: bool
    constant_lr: float | None = None


LATE = 10_000  # a late epoch, in which all terms have their full weights


def warn_of_late_terms(method: Distiller, epochs: int) -> None:
    """Warn if a run ends before the weight of a term rises above 0."""

    def weights(epoch: int) -> dict[str, float]:
        return method.weights(Progress(epoch, max(epoch, epochs)))

    counted = {name for epoch in range(1, epochs + 1) for name, weight in weights(epoch).items() if weight}
    late = [name for name, weight in weights(LATE).items() if weight and name not in counted]
    if late:
        begin = next(epoch for epoch in range(epochs + 1, LATE + 1) if weights(epoch).get(late[0]))
        log.warning(
            "warning: the weight of %s is 0 before epoch %d, but --epochs is %d, so this run trains without it: raise "
            "--epochs, or let %s begin earlier (see --distill %s --help)",
            *(" + ".join(late), begin, epochs, method.name, method.name),
        )


def smallest_batch(samples: int, batch_size: int, accumulate: int, processes: int, full_batches: bool) -> int:
    """Samples of the smallest forward pass of an epoch in a process; batch_size: per optimiser step in a process."""
    left = 0 if full_batches else samples % (batch_size * processes) // processes
    sizes = [(n, -(-n // accumulate)) for n in (batch_size, left) if n]
    return min(n % micro or micro for n, micro in sizes)


@torch.no_grad()
def refuse_single_values(net: TappedNet, shapes: Mapping[str, tuple[int, ...]], smallest: int) -> None:
    """UserError if a batch norm would get a single value per channel, which has no variance.

    smallest: samples of an epoch's smallest forward pass. Runs one forward in eval mode, which changes no statistics.
    """
    if smallest > 1:
        return
    single = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(module)

    together = distributed.world_size() > 1
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and not (together and isinstance(m, SyncBatchNorm))]
    hooks = [module.register_forward_pre_hook(look) for module in norms]
    was_training, shape = net.training, shapes[net.spec.input]
    try:
        net.eval()(dict.fromkeys(shapes, torch.zeros(1, *shape, device=next(net.parameters()).device)))
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    if single:
        raise UserError(
            f"{net.spec.name} normalises over the batch, but an epoch has a batch of one sample, which has no variance "
            f"in {len(single)} of its layers: choose another --batch_size or --accumulate, or a larger input"
        )


def checked_smallest(net: TappedNet, data: DataSet, batch_size: int, accumulate: int, full_batches: bool) -> int:
    """smallest_batch() of a run. UserError if a micro-batch is empty, or too small for the network."""
    if accumulate > batch_size:
        raise UserError(f"--accumulate {accumulate} is above the {batch_size} samples of a batch: choose at most that")
    processes = distributed.world_size()
    smallest = smallest_batch(len(data.train_labels), batch_size, accumulate, processes, full_batches)
    refuse_single_values(net, data.shapes, smallest)
    return smallest


def refuse_lone_samples(method: Distiller, size: int) -> None:
    """UserError for a loss between samples, if every forward pass has one sample. size: of a forward in this
    process."""
    lonely = [m.name for m in method.each() if m.relational]
    if size < 2 and lonely:
        raise UserError(
            f"--distill {'+'.join(lonely)} compares the samples of a batch, but each forward pass has one: choose a "
            "larger --batch_size or a smaller --accumulate"
        )


@dataclass(frozen=True)
class StagePlan:
    """batch_size: per optimiser step in this process. seed: of initialisation; the method's draws use seed + 1."""

    batch_size: int
    epochs: int
    init_epochs: int = 1
    seed: int = 0


def build_stages(
    method: type[Distiller],
    cfg: Any,
    student: ModelSpec,
    teacher: Network | None,
    data: DataSet,
    setup: StepSetup,
    plan: StagePlan,
    source: TeacherSource | None = None,
) -> Iterator[Stage]:
    """Yield one stage after another, with the same networks. Train a stage before taking the next.

    source: of a frozen teacher's features; None: run `teacher` live.
    """
    device, batch_size, accumulate = setup.device, plan.batch_size, setup.accumulate
    chain, mode = chain_of(method), method.teacher_mode
    if mode == "frozen" and teacher is None:
        raise UserError(f"--distill {method.name} needs a teacher: pass its checkpoint with --path_t")
    peer_spec = student if mode == "trained" else None
    teacher_spec = teacher.spec if teacher is not None and mode == "frozen" else peer_spec
    needs = union_of_needs(method, cfg, student, teacher_spec)
    full, kernels = -(-batch_size // accumulate), setup.kernels
    s_net = to_device(TappedNet(student(num_classes=data.num_classes), student, needs.student), device, kernels)
    peer = t_source = t_side = None
    if mode == "trained":
        peer = to_device(TappedNet(student(num_classes=data.num_classes), student, needs.teacher), device, kernels)
        t_side = probe(peer, data.shapes)
    elif teacher is not None and mode == "frozen":
        # eval mode first: a new wrapper is in training mode and would put the teacher into it
        t_net = to_device(teacher.tapped(needs.teacher).eval().requires_grad_(False), device, kernels)
        t_source = source or teacher.source(t_net, device, setup.autocast, kernels, full)
        t_side = teacher.side(t_net, data.shapes)
    rng = torch.Generator(device).manual_seed(plan.seed + 1)
    full_batches = needs.full_batches or data.full_batches
    ctx = Context(
        data.num_classes,
        data.train_labels.to(device),
        full,
        probe(s_net, data.shapes),
        t_side,
        device=device,
        init_rng=torch.Generator().manual_seed(plan.seed),
        smallest_batch=checked_smallest(s_net, data, batch_size, accumulate, full_batches),
        rng=rng,
    )
    previous: Distiller | None = None
    for i, stage in enumerate(chain):
        s_net.requires_grad_(True)
        if previous is not None:
            ctx = dataclasses.replace(ctx, previous=previous.requires_grad_(False))
        current = to_device(stage(cfg, ctx), device, kernels)
        refuse_lone_samples(current, full)
        step = DistillStep(
            s_net,
            t_source,
            current,
            setup if stage is chain[-1] else dataclasses.replace(setup, ema=EmaConfig()),
            needs=needs_of(stage, cfg, student, teacher_spec),
            peer=peer,
            rng=rng,
            full=full,
        )
        if (groups := setup.optim.param_groups) != "one":
            regroup(step.optimizers["main"], tsm_multipliers(s_net.model, s_net.head, groups == "tsm_fc5"))
        final = i == len(chain) - 1
        if final:
            warn_of_late_terms(current, plan.epochs)
        yield Stage(step, t_side, plan.epochs if final else plan.init_epochs, i, final, stage.constant_lr(cfg, student))
        previous = current
