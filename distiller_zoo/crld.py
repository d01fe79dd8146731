"""Cross-View Consistency Regularisation for Knowledge Distillation (Zhang et al., ACM MM 2024): two views, four KLs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.option import not_negative, option, positive, probability
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms, UserError
from dataset.images.randaugment import cutout, rand_augment
from distiller_zoo._math import kl_rows, with_strong_view
from distiller_zoo.base import LogitLoss


class CRLD(LogitLoss):
    """a_w m_w (KL_ww + KL_ss) + a_c m_s (KL_sw + KL_ws), mean over B; T^2 KL at temperature T.

    KL_xy compares the student on view x with the teacher on view y; w: the batch as it comes, s: a strong view of it,
    two operations of RandAugment at random magnitudes and Cutout. m_w and m_s are 1 where the teacher's largest
    probability on the weak and the strong view reaches its threshold. Rows without a view that does count as 0.
    Cross-entropy counts for both views (crld_cls is the strong one's). The strong view starts from the weak one's crop;
    the published one is cropped again. Twice the images per step of other methods.
    """

    name = "crld"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 1.0
        within: float = option(
            2.0,
            "weight a_w of the pairs of one view; published 0.5 to 2 by pair of networks",
            "--crld_within",
            check=not_negative,
        )
        across: float = option(0.5, "weight a_c of the pairs of two views", "--crld_across", check=not_negative)
        weak_threshold: float = option(0.9, "smallest confidence for the weak view", "--crld_tau_w", check=probability)
        strong_threshold: float = option(
            0.2, "smallest confidence for the strong view", "--crld_tau_s", check=probability
        )
        temperature: float = option(4.0, "temperature; published 1 on ImageNet", "--crld_T", check=positive)

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.rng = ctx.rng
        self.image = ctx.student.spec.input
        if len(ctx.student.spec.input_shape) != 3:
            raise UserError(f"crld augments images, but {ctx.student.spec.name} reads '{self.image}'")

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        if cfg.frame_logits:
            raise UserError("crld compares two views of an image, not frames: leave --frame_logits out")
        return Needs()

    def _strong(self, x: Tensor) -> Tensor:
        return cutout(rand_augment(x, self.rng, magnitude=None), self.rng)

    def prepare(self, batch: Batch) -> Batch:
        return with_strong_view(batch, self.image, self._strong, self.name)

    def _divergence(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """[B], weighted by row_weights()."""
        rows = kl_rows(self.comparable(z_s), self.comparable(z_t), self.cfg.temperature)
        return self.weighted_rows(rows, z_s, z_t)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        weak_s, strong_s = (s["logits"][v :: batch.views] for v in (0, 1))
        weak_t, strong_t = (t["logits"][v :: batch.views] for v in (0, 1))
        sure_w = weak_t.softmax(1).amax(1) >= self.cfg.weak_threshold  # [B]
        sure_s = strong_t.softmax(1).amax(1) >= self.cfg.strong_threshold
        within = sure_w * (self._divergence(weak_s, weak_t) + self._divergence(strong_s, strong_t))
        across = sure_s * (self._divergence(strong_s, weak_t) + self._divergence(weak_s, strong_t))
        terms = {"crld": (self.cfg.within * within + self.cfg.across * across).mean()}
        if self.cfg.cls:
            target = batch.target if batch.soft_target is None else batch.soft_target
            terms["crld_cls"] = self.cross_entropy(strong_s, target)
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        return {**super().weights(progress), "crld_cls": self.cfg.cls}
