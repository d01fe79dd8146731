"""Class Attention Transfer Based Knowledge Distillation (Guo et al., CVPR 2023): class activation maps agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from core.option import option, within
from core.protocols import Batch, Context, Features, Progress, Side, Terms, UserError
from distiller_zoo._stages import classified_map, linear_head
from distiller_zoo.base import LastMaps


def require_size(side: Side, stage: str, resolution: int) -> None:
    _, height, width = side.shapes[stage]
    if resolution > min(height, width):
        raise UserError(
            f"--cat_kd_resolution {resolution} exceeds the last map of {side.spec.name}, which is {height}x{width}"
        )


class CATKD(LastMaps):
    """Mean (A_s - A_t)^2, where A = normalise(pool(W f + b)): one map per class, pooled to 2x2, of unit length.

    W, b: each network's own classifier, applied to every place of its last map; the student's learns from this term.
    The paper's (and our) maps are of unit length, with weight 300; the released settings for resnet32x4 -> resnet8x4
    compare them unnormalised, with weight 15 and cross-entropy: --cat_kd_raw -b 15 -c 1 -d 0.
    """

    name = "cat_kd"
    tap_of = staticmethod(classified_map)
    reads_logits = True  # through the classifier's weights

    @dataclass(frozen=True)
    class Config(LastMaps.Config):
        beta: float = 300.0
        resolution: int = option(2, "side of the pooled class maps", "--cat_kd_resolution", check=within(least=1))
        raw: bool = option(False, "compare the class maps without scaling them to unit length", "--cat_kd_raw")
        authors: ClassVar[Mapping[str, float]] = {"cls": 0.0, "div": 0.0}

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.student_head = linear_head(ctx.student, self.last_s, self.name)  # the student's own, not a copy
        self.teacher_head = linear_head(ctx.teacher, self.last_t, self.name).requires_grad_(False)
        require_size(ctx.student, self.last_s, cfg.resolution)
        require_size(ctx.teacher, self.last_t, cfg.resolution)

    def _class_maps(self, f: Tensor, head: nn.Linear) -> Tensor:
        """[B, C, H, W] -> [B, K, R * R]. Pooled first, which is the same: the classifier is linear."""
        pooled = F.adaptive_avg_pool2d(f, self.cfg.resolution)
        return head(pooled.flatten(2).mT).mT

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        maps_s = self._class_maps(s[self.last_s], self.student_head)
        maps_t = self._class_maps(t[self.last_t], self.teacher_head)
        return {**s, "cat_kd.maps": maps_s}, {**t, "cat_kd.maps": maps_t}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        maps_s, maps_t = s["cat_kd.maps"], t["cat_kd.maps"]
        if not self.cfg.raw:
            maps_s, maps_t = F.normalize(maps_s, dim=2), F.normalize(maps_t, dim=2)
        return {"cat_kd": F.mse_loss(maps_s, maps_t)}
