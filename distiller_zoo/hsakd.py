"""Hierarchical Self-supervised Augmented KD (Yang et al., IJCAI 2021): KD of (class, rotation) at every stage."""

from __future__ import annotations

from dataclasses import dataclass

from core.option import option
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms, UserError
from distiller_zoo._heads import Rotated, auxiliary_heads, require_outputs


def paired_heads(chosen: tuple[int, ...], student: ModelSpec, teacher: ModelSpec | None, method: str) -> dict[str, str]:
    """Head of the student -> head of the teacher, one to one unless chosen (1 is the shallowest)."""
    heads_s, heads_t = auxiliary_heads(student, method), auxiliary_heads(teacher, method)
    n_s, n_t = len(heads_s), len(heads_t)
    deepest = [max(1, n_t - n_s + i) for i in range(1, n_s + 1)]
    mapping = f"--hsakd_heads {' '.join(map(str, deepest))}"
    if not chosen and n_s != n_t:
        raise UserError(
            f"{method} pairs auxiliary heads one to one, but {student.name} has {n_s} and {teacher.name} {n_t}: "  # type: ignore[union-attr]
            f"give the teacher's head for each of the student's, such as {mapping}"
        )
    if chosen and (len(chosen) != n_s or not all(1 <= i <= n_t for i in chosen)):
        raise UserError(
            f"--hsakd_heads {' '.join(map(str, chosen))} must name one of the {n_t} heads of {teacher.name} "  # type: ignore[union-attr]
            f"for each of the {n_s} of {student.name}, such as {mapping}"
        )
    return {head: heads_t[i - 1] for head, i in zip(heads_s, chosen or range(1, n_s + 1), strict=True)}


class HSAKD(Rotated):
    """Terms: cls on upright images; div, the KL of the networks' own logits, and hsakd, that of the heads summed, both
    over all views, T = 3. Nothing but KD trains the student's heads, and they are dropped at test time."""

    name = "hsakd"

    @dataclass(frozen=True)
    class Config(Rotated.Config):
        heads: tuple[int, ...] = option(
            (), "head of the teacher that each head of the student learns from (default: one to one)", "--hsakd_heads"
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.pairs = paired_heads(tuple(cfg.heads), ctx.student.spec, ctx.teacher and ctx.teacher.spec, self.name)
        require_outputs(ctx.teacher, list(self.pairs.values()), self.per_class, ctx.num_classes, self.name)

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        pairs = paired_heads(tuple(cfg.heads), student, teacher, cls.name)
        return Needs(tuple(pairs), tuple(dict.fromkeys(pairs.values())))

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"hsakd": self.head_kl(s, t, self.pairs)}
