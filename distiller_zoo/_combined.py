"""Several methods joined: kd+crd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor, nn

from core.protocols import (
    Batch,
    Context,
    Features,
    Gradients,
    ModelSpec,
    Needs,
    Part,
    Phase,
    Progress,
    Terms,
    UserError,
)
from distiller_zoo.base import Deployment, Distiller


@dataclass(frozen=True)
class CombinedConfig(Distiller.Config):
    """Settings of a combination. members: each method with its own Config."""

    members: tuple[tuple[type[Distiller], Any], ...] = ()


def common_weights(methods: Sequence[type[Distiller]], rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Weights of a combination: the largest cls and the largest div of its members. If a member replaces the student's
    classifier, that member's weights, as those of the others assume the student's classifier.

    rows: cls, div and kd_T of each method alone.
    """
    deciding = [r for r, m in zip(rows, methods, strict=True) if m.deployment is not Distiller.deployment] or rows
    return {
        "cls": max(r["cls"] for r in deciding),
        "div": max(r["div"] for r in deciding),
        "beta": 1.0,
        "kd_T": rows[0]["kd_T"],
    }


class Combined(Distiller):
    """Several methods on one student: `--distill kd+crd`. cls and div are computed once."""

    Config = CombinedConfig

    def __init__(self, cfg: CombinedConfig, ctx: Context):
        super().__init__(cfg, ctx)
        self.check(cfg)
        self.name = "+".join(m.name for m, _ in cfg.members)  # type: ignore[misc]
        self.members = nn.ModuleDict({m.name: m(c, ctx) for m, c in cfg.members})
        self.reads_logits = any(m.reads_logits for m in self.each())  # some members set it when they are built
        self.follows_time = any(m.follows_time for m in self.each())
        self.by_index = any(m.by_index for m in self.each())

    @classmethod
    def needs_labels(cls, cfg: CombinedConfig) -> bool:
        return any(m.needs_labels(c) for m, c in cfg.members)

    @classmethod
    def needs_classifier(cls, cfg: CombinedConfig) -> bool:
        return bool(cfg.div) or any(m.needs_classifier(dataclasses.replace(c, div=0.0)) for m, c in cfg.members)

    @staticmethod
    def check(cfg: CombinedConfig) -> None:
        methods = [m for m, _ in cfg.members]
        names = [m.name for m in methods]
        if len(set(names)) < len(names):
            raise UserError(f"{'+'.join(names)} names a method twice")
        staged = [m.name for m in methods if m.before is not None]
        if staged:
            raise UserError(f"{', '.join(staged)} trains a separate first stage and cannot be combined")
        deploying = [m.name for m in methods if m.deployment is not Distiller.deployment]
        if len(deploying) > 1:
            raise UserError(f"{' and '.join(deploying)} both change the deployed network: combine at most one of them")
        idle = [m.name for m in methods if m.terms is Distiller.terms and not (cfg.cls or cfg.div)]
        if deploying and idle:
            raise UserError(
                f"{deploying[0]} replaces the classifier that {' and '.join(idle)} would train, so it has no effect: "
                f"leave {' and '.join(idle)} out, or train that classifier with -c and -d"
            )
        parted = [m.name for m in methods if m.parts is not Distiller.parts]
        if len(parted) > 1:
            raise UserError(f"{' and '.join(parted)} both need separate gradients: combine at most one of them")
        online = [m.name for m in methods if m.teacher_mode == "trained"]
        if online:
            raise UserError(f"{', '.join(online)} trains two peers and cannot be combined")

    @classmethod
    def needs(cls, cfg: CombinedConfig, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return reduce(or_, (m.needs(c, student, teacher) for m, c in cfg.members), Needs())

    @classmethod
    def notes(cls, cfg: CombinedConfig, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        return [note for m, c in cfg.members for note in m.notes(c, student, teacher)]

    def each(self) -> list[Distiller]:
        return list(self.members.values())  # type: ignore[arg-type]

    def deployment(self) -> Deployment | None:
        return next((d for m in self.each() if (d := m.deployment()) is not None), None)

    def prepare_teacher(self, seen: Callable[[], Iterable[tuple[Features, Batch]]]) -> None:
        for m in self.each():
            if m.prepares_teacher:
                m.prepare_teacher(seen)

    @property
    def prepares_teacher(self) -> bool:
        return any(m.prepares_teacher for m in self.each())

    def prepare(self, batch: Batch) -> Batch:
        for m in self.each():
            batch = m.prepare(batch)
        return batch

    def frames_as_views(self, s: Features, t: Features, batch: Batch) -> tuple[Features, Features, Batch]:
        return s, t, batch  # each member has its own

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        for m in self.each():
            s, t = m.connect(s, t)
        return s, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        terms: Terms = {}
        for m in self.each():
            terms.update(m.terms(*m.frames_as_views(s, t, batch), progress))
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        """Those of all members; cls and div as the member says that changes them over time, such as kdpp."""
        own = [(m.cfg, m.weights(progress)) for m in self.each()]
        cls = min((w.get("cls", c.cls) / c.cls for c, w in own if c.cls), default=1.0)
        div = min((w.get("div", c.div) / c.div for c, w in own if c.div), default=1.0)
        weights = {name: weight for _, w in own for name, weight in w.items()}
        return weights | {"cls": self.cfg.cls * cls, "div": self.cfg.div * div}

    def div_rows(self, z_s: Tensor, z_t: Tensor) -> Tensor | None:
        own = next((m for m in self.each() if type(m).div_rows is not Distiller.div_rows), None)
        return super().div_rows(z_s, z_t) if own is None else own.div_rows(z_s, z_t)

    def weights_of_views(self) -> Tensor | None:
        return next((w for m in self.each() if (w := m.weights_of_views()) is not None), None)

    def after_step(self, s: Features, t: Features, batch: Batch) -> None:
        for m in self.each():
            m.after_step(s, t, batch)

    @property
    def wants_after_step(self) -> bool:
        return any(m.wants_after_step for m in self.each())

    def _dividing(self) -> Distiller | None:
        return next((m for m in self.each() if m.parts()), None)

    def parts(self) -> tuple[Part, ...]:
        return () if (m := self._dividing()) is None else m.parts()

    def join_gradients(self, gradients: list[Gradients]) -> list[Gradients]:
        return gradients if (m := self._dividing()) is None else m.join_gradients(gradients)

    def extra_phases(self) -> tuple[Phase, ...]:
        return tuple(p for m in self.each() for p in m.extra_phases())

    def reported(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(x for m in self.each() for x in m.reported()))

    def readouts(self, features: Features) -> dict[str, Tensor]:
        return {k: v for m in self.each() for k, v in m.readouts(features).items()}
