"""Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022): mean (transfer(f_s) - f_t)^2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from core.option import option
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Side, Tap, Terms, UserError
from distiller_zoo._math import squared_error
from distiller_zoo._stages import classified_map, head_width, last_stage, require_pooled_head
from distiller_zoo.base import OWN_LOGITS, Deployment, Distiller


class Projected(Deployment):
    """The student's last map, projected; its mean over the map is read by the teacher's frozen classifier.

    shrink: pools a map that is larger than the teacher's. channels: of the student's and of the teacher's last map.
    """

    def __init__(self, cfg: Any, student: Side, teacher_head: nn.Module, shrink: nn.Module, channels: Sequence[int]):
        last = {find(student.spec, SimKD.name): Tap("transfer", "map") for find in (last_stage, classified_map)}
        super().__init__(SimKD.name, cfg, {**last, "pooled": Tap("pool", "vector")}, head="teacher_head")
        c_s, c_t = channels
        hidden = c_t // cfg.factor
        self.last_s, self.shrink = last_stage(student.spec, SimKD.name), shrink
        self.transfer = nn.Sequential(
            nn.Conv2d(c_s, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, c_t, 1, bias=False),
            nn.BatchNorm2d(c_t),
            nn.ReLU(),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.teacher_head = teacher_head.requires_grad_(False)

    def forward(self, s: Features) -> Features:
        projected = self.transfer(self.shrink(s[self.last_s]))
        logits = self.teacher_head(self.pool(projected))
        return {**s, "simkd.projected": projected, OWN_LOGITS: s["logits"], "logits": logits}

    def entries(self) -> dict[str, dict[str, Tensor]]:
        proj = {f"transfer.{key}": value for key, value in self.transfer.state_dict().items()}
        return {"proj": proj, "head": self.teacher_head.state_dict()}

    def load_entries(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Published checkpoints hold no "head": the teacher's own stays."""
        self.transfer.load_state_dict({key.removeprefix("transfer."): value for key, value in entries["proj"].items()})
        if "head" in entries:
            self.teacher_head.load_state_dict(entries["head"])


def _older_keys(method: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """States of runs that began before the projector was a separate module."""
    for old in ("transfer.", "teacher_head."):
        for key in [k for k in state if k.startswith(prefix + old)]:
            state[f"{prefix}projected.{key.removeprefix(prefix)}"] = state.pop(key)


class SimKD(Distiller):
    """The student's last map is projected onto the teacher's, and the teacher's frozen classifier reads the result.

    The loss compares the maps before global pooling, the larger pooled to the smaller; mean over B, C, H, W. Deployed
    are the student's backbone, the projector and the teacher's classifier. cls and div, if weighted, act on the logits
    of the student's own classifier, as published; otherwise the layers after the last map are not trained.
    """

    name = "simkd"
    reads_teacher_head = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        cls: float = 0.0
        div: float = 0.0
        beta: float = 1.0
        factor: int = option(
            2, "the projector's hidden width is the teacher's width divided by this", "--factor", short="-f"
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.last_t = classified_map(ctx.teacher.spec, self.name)
        (c_s, *size_s), (c_t, *size_t) = (
            ctx.student.shapes[last_stage(ctx.student.spec, self.name)],
            ctx.teacher.shapes[self.last_t],
        )
        require_pooled_head(ctx.teacher, self.name)
        if c_t != (width := head_width(ctx.teacher)):
            raise UserError(
                f"simkd reuses the classifier of {ctx.teacher.spec.name}, which reads {width} values, "
                f"while its last map has {c_t} channels; choose a teacher that only pools in between, "
                "e.g. a resnet, a wrn or a vgg"
            )
        if cfg.factor < 1 or c_t % cfg.factor:
            fitting = ", ".join(str(f) for f in range(1, 17) if c_t % f == 0)
            raise UserError(
                f"--factor {cfg.factor} does not divide the {c_t} channels of the last map of "
                f"{ctx.teacher.spec.name}; choose one that does, e.g. {fitting}"
            )
        larger = size_s[0] > size_t[0]
        shrink = nn.AdaptiveAvgPool2d(size_t) if larger else nn.Identity()
        self.projected = Projected(cfg, ctx.student, ctx.teacher.head, shrink, (c_s, c_t))
        self.shrink_teacher = nn.Identity() if larger or size_s == size_t else nn.AdaptiveAvgPool2d(size_s)
        self.register_load_state_dict_pre_hook(_older_keys)

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs((last_stage(student, cls.name),), (classified_map(teacher, cls.name),))

    def deployment(self) -> Deployment:
        return self.projected

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return s, {**t, "simkd.target": self.shrink_teacher(t[self.last_t])}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"simkd": squared_error(s["simkd.projected"], t["simkd.target"])}
