"""Function-Consistent Feature Distillation (Liu et al., ICLR 2023): maps of one network continue through the other."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.option import not_negative, option, within
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Side, Tapped, Terms, UserError
from distiller_zoo._math import kl, squared_error, warmed_up
from distiller_zoo._stages import paired_stages, shown
from distiller_zoo.base import Distiller

SLOPE = 0.1  # of the leaky ReLU that ends a bridge
TEACHER, STUDENT = "0", "1"  # in the published key names


def ends_in_relu(spec: ModelSpec, stage: str) -> bool:
    """Whether the map of a stage is taken behind a ReLU; of networks without pre-activations here, ResNets, it is."""
    before = spec.taps.get(f"{stage}_preact")
    return before is None or before.side == "input"


def bridge(shape: Sequence[int], other: Sequence[int], rectified: bool) -> nn.Sequential:
    """From maps of one network [C, H, W] to the shape of the other's: a convolution and a batch norm."""
    (c, h, w), (c_other, h_other, w_other) = shape, other
    conv: nn.Module
    if (h, w) == (h_other, w_other):
        conv = nn.Conv2d(c, c_other, 3, padding=1, bias=False)
    elif (h, w) == (2 * h_other, 2 * w_other):
        conv = nn.Conv2d(c, c_other, 3, stride=2, padding=1)
    elif (2 * h, 2 * w) == (h_other, w_other):
        conv = nn.ConvTranspose2d(c, c_other, 4, stride=2, padding=1)
    else:
        raise UserError(f"fcfd bridges maps of equal size or of twice the size, not {shown(shape)} and {shown(other)}")
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm2d(c_other), *([nn.LeakyReLU(SLOPE)] if rectified else []))


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training normalise with the batch and leave their running statistics as they are."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def chained(side: Side) -> Tapped:
    if side.net is None or not {side.spec.taps[stage].module for stage in side.spec.stages} <= set(side.spec.chain):
        raise UserError(
            f"fcfd runs parts of both networks, and the parts of {side.spec.name} are unknown: choose a resnet, "
            "a wrn, a vgg, MobileNetV2, a shuffle net, or a ResNet of torchvision or timm"
        )
    return side.net


class FCFD(Distiller):
    """fcfd: squared differences of the teacher's maps and those of the student, bridged to their shape. fcfd_mixed: KL
    of mixed networks, which switch from student to teacher or back behind a stage; some are drawn at every step.

    In a mixed network the teacher's later maps count in fcfd, too, and of the last stage so do the rectified means over
    the map. The teacher is frozen: the published code keeps it in training mode, so that its batch norms use the batch
    and drift. Published with --optimizer nesterov; -b 0.02 for resnet56 -> resnet20 and on ImageNet; --kd_T 8 for
    ResNet50 -> MobileNetV2 and resnet32x4 -> shuffle nets; --fcfd_mixed 0.2 for wrn_40_2 -> wrn_16_2.
    The published code reads the stages of vgg and ShuffleV1 before their ReLU; here they are read after it.
    """

    name = "fcfd"
    reads_logits = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 5.0
        mixed: float = option(1.0, "weight of the KL of the mixed networks", "--fcfd_mixed", check=not_negative)
        paths: int = option(2, "number of mixed networks per step", "--fcfd_paths", check=within(least=1))
        warmup: int = option(
            20,
            "epochs over which the weight of the maps rises from 0; published 5 on ImageNet",
            "--fcfd_warmup",
            check=not_negative,
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.nets = {TEACHER: chained(ctx.teacher), STUDENT: chained(ctx.student)}  # no modules of this one
        sides = {TEACHER: ctx.teacher, STUDENT: ctx.student}
        self.stages = [a for a, _ in paired_stages(ctx.student.spec, ctx.teacher.spec, self.name)]
        self.bridges = nn.ModuleDict()
        for number, stage in enumerate(self.stages, 1):
            self.bridges[str(number)] = both = nn.ModuleDict()
            for to, start in ((TEACHER, STUDENT), (STUDENT, TEACHER))[: 1 if stage == self.stages[-1] else 2]:
                shapes = sides[start].shapes[stage], sides[to].shapes[stage]
                both[to] = nn.ModuleDict({start: bridge(*shapes, ends_in_relu(sides[to].spec, stage))})
        self.switches = [(to, i) for to in (TEACHER, STUDENT) for i in range(1, len(self.stages))]
        self.seed, self.steps = ctx.init_rng.initial_seed(), 0  # the same in every process

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        pairs = paired_stages(student, teacher, cls.name)
        if len(student.stages) != len(teacher.stages) or any(a != b for a, b in pairs):
            raise UserError(
                f"fcfd switches between the stages of two networks, and {student.name} has {len(student.stages)} of "
                f"them, {teacher.name} {len(teacher.stages)}: choose two with the same number"
            )
        return Needs(student.stages, teacher.stages)

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state

    def paths(self) -> list[tuple[str, int]]:
        """(network that is switched to, stage behind which) of a step: a function of the seed and the step."""
        self.steps += 1
        drawn = random.Random(self.seed * 1_000_003 + self.steps)
        return drawn.sample(self.switches, min(self.cfg.paths, len(self.switches)))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        paths = self.paths()
        made = {}
        for number, stage in enumerate(self.stages, 1):
            made[f"fcfd.{stage}.bridged"] = self.bridges[str(number)][TEACHER][STUDENT](s[stage])
        for n, (to, i) in enumerate(paths):
            stage = self.stages[i - 1]
            if to == TEACHER:
                features = self.nets[to].run_from(stage, made[f"fcfd.{stage}.bridged"])
                made |= {f"fcfd.{k}.{n}": v for k, v in features.items()}
            else:
                with statistics_kept(self.nets[to].model):
                    features = self.nets[to].run_from(stage, self.bridges[str(i)][STUDENT][TEACHER](t[stage]))
                made[f"fcfd.logits.{n}"] = features["logits"]
        used = {i for to, i in paths if to == STUDENT}
        idle = [self.bridges[str(i)][STUDENT] for to, i in self.switches if to == STUDENT and i not in used]
        # a gradient of 0 for bridges that no path takes: all processes wait for those of every parameter
        made["fcfd.idle"] = s["logits"].new_zeros(()) + sum(0 * p.sum() for b in idle for p in b.parameters())
        return {**s, **made}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss, mixed = s["fcfd.idle"], s["fcfd.idle"]
        for stage in self.stages:
            f_t = t[stage]
            for f in (v for k, v in s.items() if k.startswith(f"fcfd.{stage}.")):
                loss = loss + squared_error(f, f_t)
                if stage == self.stages[-1]:
                    loss = loss + F.mse_loss(f.relu().mean((2, 3)), f_t.relu().mean((2, 3)))
        z_t = self.comparable(t["logits"])
        for z in (v for k, v in s.items() if k.startswith("fcfd.logits.")):
            mixed = mixed + kl(self.comparable(z), z_t, self.cfg.kd_T)
        return {"fcfd": loss, "fcfd_mixed": mixed}

    def weights(self, progress: Progress) -> dict[str, float]:
        ramp = warmed_up(progress.epoch, self.cfg.warmup)
        return {**super().weights(progress), "fcfd": self.cfg.beta * ramp, "fcfd_mixed": self.cfg.mixed}
