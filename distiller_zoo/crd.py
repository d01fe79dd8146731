"""Contrastive Representation Distillation (Tian et al., ICLR 2020, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from core.option import option, positive, probability, within
from core.protocols import Batch, Context, Features, Progress, Terms
from crd.criterion import NCECriterion
from crd.memory import ContrastSampler, MemoryBank
from distiller_zoo.base import PooledVectors, WithoutKL


class Embed(nn.Module):
    """Pooled vectors [B, C] -> [B, D] of unit length."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.linear = nn.Linear(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x))


class CRD(PooledVectors):
    """Student and teacher embeddings of one sample agree, against negatives of other classes from memory banks.

    With several views per sample, view 0 is contrasted. The banks are updated after the optimiser's step.
    """

    name = "crd"
    by_index = True

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 0.8
        feat_dim: int = option(128, "width of the embeddings", "--feat_dim", check=within(least=1, most=2**20))
        mode: str = option(
            "exact",
            "positive of an anchor: exact: its own sample; relax: any sample of its class",
            "--mode",
            choices=("exact", "relax"),
        )
        nce_k: int = option(16384, "negatives per anchor", "--nce_k", check=within(least=1, most=2**24))
        nce_t: float = option(0.07, "temperature of the scores", "--nce_t", check=positive)
        nce_m: float = option(0.5, "momentum of the memory banks", "--nce_m", check=probability)

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        num_samples = len(ctx.train_labels)
        self.embed_s = Embed(ctx.student.shapes["pooled"][0], cfg.feat_dim)
        self.embed_t = Embed(ctx.teacher.shapes["pooled"][0], cfg.feat_dim)
        self.contrast = ContrastSampler(ctx.train_labels, cfg.nce_k, cfg.mode, ctx.rng)
        self.memory = MemoryBank(num_samples, cfg.feat_dim, cfg.nce_m, ctx.init_rng)
        self.criterion = NCECriterion(num_samples, cfg.nce_t)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return {**s, "crd.v_s": self.embed_s(s["pooled"])}, {**t, "crd.v_t": self.embed_t(t["pooled"])}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        v_s, v_t = self._first_view(s["crd.v_s"], batch), self._first_view(t["crd.v_t"], batch)
        return {"crd": self.criterion(*self.memory(v_s, v_t, self.contrast(batch.index)))}

    def after_step(self, s: Features, t: Features, batch: Batch) -> None:
        self.memory.update(batch.index, self._first_view(s["crd.v_s"], batch), self._first_view(t["crd.v_t"], batch))

    @staticmethod
    def _first_view(v: Tensor, batch: Batch) -> Tensor:
        """[B*V, D] -> [B, D]."""
        return v[:: len(v) // len(batch)]
