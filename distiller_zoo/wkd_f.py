"""Wasserstein Distance Rivals Kullback-Leibler Divergence for KD, features (Lv et al., NeurIPS 2024, WKD-F).

Sum of ratio * (mu_s - mu_t)^2 + (sigma_s - sigma_t)^2 over channels and cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.option import not_negative, option, within
from core.protocols import Batch, Context, Features, Progress, Terms, UserError
from distiller_zoo._stages import classified_map, resizing_conv
from distiller_zoo.base import LastMaps, WithoutKL

EPS = 1e-5  # added to a variance


def gaussians(f: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] -> mean and standard deviation of each cell of a grid x grid division, [grid^2, B, C] each.

    Cell i covers rows floor(i H / grid) to ceil((i + 1) H / grid); cells overlap where the grid does not divide H.
    """

    def spans(size: int) -> list[slice]:
        return [slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]

    cells = [f[:, :, rows, columns] for rows in spans(f.shape[2]) for columns in spans(f.shape[3])]
    variances, means = zip(*(torch.var_mean(cell, (2, 3)) for cell in cells), strict=True)  # unbiased
    return torch.stack(means), (torch.stack(variances) + EPS).sqrt()


class Bottleneck(nn.Sequential):
    """1x1, 3x3 and 1x1 convolutions without anything in between, as published."""

    def __init__(self, c_s: int, hidden: int, c_t: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_s, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv3 = nn.Conv2d(hidden, c_t, 1)


class WKDF(LastMaps):
    """Squared Wasserstein distance of diagonal Gaussians fitted to the last maps, in each of grid x grid cells.

    Sum over channels and cells, mean over B, divided by grid^2. The student's map is projected to the teacher's width
    (convolution, batch norm, ReLU); cells need no maps of one size. The weight is constant up to an epoch and then
    falls to 0 along a cosine. Defaults: resnet32x4 -> resnet8x4; for wrn_40_2 -> ShuffleV1 beta 0.3, ratio 3,
    grid 4.
    """

    name = "wkd_f"
    tap_of = staticmethod(classified_map)

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 0.08
        ratio: float = option(
            4.0, "weight of the means relative to the deviations", "--wkd_f_ratio", check=not_negative
        )
        grid: int = option(1, "cells along each side of the map", "--wkd_f_grid", check=within(least=1))
        projector: str = option(
            "conv1x1",
            "the projector: one convolution with a kernel that fits both sizes, or three (published for ImageNet)",
            "--wkd_f_projector",
            choices=("conv1x1", "bottleneck"),
        )
        hidden: int = option(256, "hidden width of the bottleneck", "--wkd_f_hidden", check=within(least=1))
        constant: int = option(
            150, "epochs after which the weight begins to fall", "--wkd_f_constant", check=not_negative
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        shape_s, shape_t = ctx.student.shapes[self.last_s], ctx.teacher.shapes[self.last_t]
        for side, shape in ((ctx.student, shape_s), (ctx.teacher, shape_t)):
            if cfg.grid >= (smallest := min(shape[1:])):
                way_out = f"less than {smallest}" if smallest > 1 else "larger images or another network"
                raise UserError(
                    f"--wkd_f_grid {cfg.grid} leaves cells of one pixel, which have no deviation: the last map of "
                    f"{side.spec.name} is {shape[1]}x{shape[2]}, so choose {way_out}"
                )
        c_s, c_t = shape_s[0], shape_t[0]
        if cfg.projector == "bottleneck":
            self.conv: nn.Module = Bottleneck(c_s, cfg.hidden, c_t)
        else:
            self.conv = resizing_conv(shape_s, shape_t) or nn.Conv2d(c_s, c_t, 1)
        self.bn = nn.BatchNorm2d(c_t)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return {**s, "wkd_f.projected": self.bn(self.conv(s[self.last_s])).relu()}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        mean_s, std_s = gaussians(s["wkd_f.projected"], self.cfg.grid)
        mean_t, std_t = gaussians(t[self.last_t], self.cfg.grid)
        distance = self.cfg.ratio * (mean_s - mean_t).pow(2) + (std_s - std_t).pow(2)  # [grid^2, B, C]
        return {"wkd_f": distance.sum(2).mean()}

    def weights(self, progress: Progress) -> dict[str, float]:
        past, left = progress.epoch - self.cfg.constant, progress.epochs - self.cfg.constant
        share = 0.5 * (1 + math.cos(math.pi * past / left)) if 0 < past <= left else 1.0
        return {**super().weights(progress), "wkd_f": self.cfg.beta * share}
