"""Factor Transfer (Kim et al., NeurIPS 2018, eq. 1 and 2): mean |Q(T(f_s)) - Q(P(f_t))|, factors of unit length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms
from distiller_zoo._math import attention_map, pool_to_smaller, squared_error
from distiller_zoo._stages import last_stage
from distiller_zoo.base import Distiller, LastMaps, WithoutKL

PARAPHRASE_RATE = 0.5  # width of a factor over width of the teacher's map
RESNET_LR = 0.01  # of the first stage, with these students
RESNETS = ("resnet", "wrn")


def layers(kind: type[nn.Module], widths: Sequence[int], norm: type[nn.Module] | None) -> nn.Sequential:
    """Three 3x3 layers with leaky ReLU; a layer without a norm keeps its place, so that published keys fit."""
    parts: list[nn.Module] = []
    for c_in, c_out in zip(widths[:-1], widths[1:], strict=True):
        parts += [kind(c_in, c_out, 3, padding=1), norm(c_out) if norm else nn.Identity(), nn.LeakyReLU(0.1)]
    return nn.Sequential(*parts)


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map [B, C, H, W] -> factor [B, C // 2, H, W]."""

    def __init__(self, c_t: int):
        super().__init__()
        width = int(c_t * PARAPHRASE_RATE)
        self.encoder = layers(nn.Conv2d, (c_t, c_t, width, width), None)
        self.decoder = layers(nn.ConvTranspose2d, (width, width, c_t, c_t), None)

    def forward(self, f_t: Tensor) -> Tensor:
        return self.encoder(f_t)


class Translator(nn.Sequential):
    """The student's map in the shape of a factor."""

    def __init__(self, c_s: int, c_t: int):
        super().__init__()
        width = int(c_t * PARAPHRASE_RATE)
        self.encoder = layers(nn.Conv2d, (c_s, c_s, width, width), nn.BatchNorm2d)


class FTInit(Distiller):
    """First stage: the paraphraser learns to rebuild the teacher's last map, mean (P'(P(f_t)) - f_t)^2."""

    name = "ft_init"

    def __init__(self, cfg: FT.Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.last_t = last_stage(ctx.teacher.spec, "ft")
        self.paraphraser = Paraphraser(ctx.teacher.shapes[self.last_t][0])

    @classmethod
    def needs(cls, cfg: FT.Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs(teacher=(last_stage(teacher, "ft"),))

    @classmethod
    def constant_lr(cls, cfg: FT.Config, student: ModelSpec) -> float | None:
        return RESNET_LR if student.name.startswith(RESNETS) else None

    def unused(self, student: nn.Module) -> Sequence[nn.Parameter]:
        return tuple(student.parameters())

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return s, {**t, "ft_init.rebuilt": self.paraphraser.decoder(self.paraphraser(t[self.last_t]))}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"ft_init": squared_error(t["ft_init.rebuilt"], t[self.last_t])}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ft_init": 1.0}


class FT(LastMaps):
    """Second stage: a translator brings the student's factor to that of the trained, fixed paraphraser.

    Mean over B and H*W of absolute differences (the published p2 = 1), the larger factor pooled to the smaller.
    """

    name = "ft"
    before = FTInit

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 200.0

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.paraphraser = ctx.previous.paraphraser
        self.translator = Translator(ctx.student.shapes[self.last_s][0], ctx.teacher.shapes[self.last_t][0])

    @classmethod
    def notes(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        if (lr := FTInit.constant_lr(cfg, student)) is None:
            return ()
        return (f"ft: its first stage runs at learning rate {lr}, as published for resnets and wrns",)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        s_factor, t_factor = self.translator(s[self.last_s]), self.paraphraser(t[self.last_t])
        return {**s, "ft.factor": s_factor}, {**t, "ft.factor": t_factor}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        factor_s, factor_t = pool_to_smaller(s["ft.factor"], t["ft.factor"])
        return {"ft": F.l1_loss(attention_map(factor_s), attention_map(factor_t))}
