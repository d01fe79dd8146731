"""Vision-to-Sensor Knowledge Distillation (Ni et al., ICASSP 2022): distance, angle and semantic terms on fc0 features.

L = CE + 0.01 L_ST + L_D + L_A + L_S with soft targets L_ST (temperature 4, the `div` term), after the constants and the
figure of the published code; the code as committed computes CE + 0.01 L_ST alone (its other terms are commented out,
or identically zero), which is `--dask_variant committed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import not_negative, option
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms, UserError
from distiller_zoo._math import angles, distances, labels_of
from distiller_zoo._stages import pooled_tap
from distiller_zoo.base import Distiller, LastMaps

ANCHOR_T = 0.1  # temperature of the cosines to the class vectors
LEARNED = 300  # values of a learned class vector; as many as GloVe has


def feature_tap(spec: ModelSpec | None, method: str) -> str:
    """The semantic layer of VSKD's networks; for others, the input of the classifier."""
    return "semantic" if spec is not None and "semantic" in spec.taps else pooled_tap(spec, method)


def read_class_vectors(path: str, num_classes: int) -> Tensor:
    """float32 [K, S] of a .npy file, rows of length 1. UserError if it is not such a file, or has not one vector per
    class."""
    import numpy as np

    try:
        table = np.load(Path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--dask_glove {path} cannot be read as a .npy file of class vectors ({error})") from error
    if table.ndim != 2 or len(table) != num_classes or table.dtype.kind != "f":
        raise UserError(
            f"--dask_glove {path} holds {table.dtype} {list(table.shape)}, expected one row for each of "
            f"{num_classes} classes"
        )
    vectors = torch.from_numpy(table).float()
    if not vectors.isfinite().all() or not (vectors.norm(dim=1) > 0).all():
        raise UserError(f"--dask_glove {path} has a row that is zero or not finite; every class needs a vector")
    return F.normalize(vectors)


class Shared(nn.Module):
    """A linear map of each side's features into the space of the class vectors [K, S]; ours, as nothing published
    uses the vectors.

    A side's map is trained to put a sample nearest the vector of its class: cross-entropy of cosines / 0.1.
    """

    def __init__(self, d_s: int, d_t: int, vectors: Tensor | None, num_classes: int, rng: torch.Generator):
        super().__init__()
        if vectors is None:
            self.vectors = nn.Parameter(torch.randn(num_classes, LEARNED, generator=rng))
        else:
            self.register_buffer("vectors", vectors, persistent=False)
        width = LEARNED if vectors is None else vectors.shape[1]
        self.of_student, self.of_teacher = nn.Linear(d_s, width), nn.Linear(d_t, width)

    def forward(self, e_s: Tensor, e_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(student, teacher) in the space, rows of length 1, and the vectors."""
        return F.normalize(self.of_student(e_s)), F.normalize(self.of_teacher(e_t)), F.normalize(self.vectors)


class DASK(LastMaps):
    """On features s_i, t_i [B, D] of the semantic layers:

    L_D: smooth L1 (beta 1) of the distances divided by their mean, mean over B^2. L_A: smooth L1 of the cosines at the
    corner of three samples, mean over B^3. L_S: mean squared difference, where both have the same width; otherwise, and
    with class vectors (--dask_glove), both are mapped into a shared space, where L_S is the squared difference plus the
    cross-entropy that holds each map to the class vectors. The teacher's side of every difference has no gradient.
    """

    name = "dask"
    tap_of = staticmethod(feature_tap)
    reads_labels = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.01
        beta: float = 1.0
        variant: str = option(
            "paper",
            "paper: all terms; committed: cross-entropy and soft targets, as the published code computes",
            choices=("paper", "committed"),
        )
        distance: float = option(1.0, "weight of the distances within the term", check=not_negative)
        angle: float = option(1.0, "weight of the angles within the term", check=not_negative)
        semantic: float = option(1.0, "weight of the semantic part within the term", check=not_negative)
        glove: str = option(
            "", "class vectors, a .npy file [classes, width] (default: learned if needed)", metavar="FILE"
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.shared: Shared | None = None
        if cfg.variant == "committed" or not cfg.semantic or not cfg.beta:
            return
        d_s, d_t = ctx.student.shapes[self.last_s][0], ctx.teacher.shapes[self.last_t][0]
        if cfg.glove or d_s != d_t:
            vectors = read_class_vectors(cfg.glove, ctx.num_classes) if cfg.glove else None
            self.shared = Shared(d_s, d_t, vectors, ctx.num_classes, ctx.init_rng)

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs() if cfg.variant == "committed" else super().needs(cfg, student, teacher)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        if self.shared is None:
            return s, t
        in_space, target, vectors = self.shared(s[self.last_s], t[self.last_t])
        return {**s, "dask.space": in_space, "dask.vectors": vectors}, {**t, "dask.space": target}

    def _semantic(self, s: Features, t: Features, batch: Batch) -> Tensor:
        if self.shared is None:
            return F.mse_loss(s[self.last_s], t[self.last_t])
        in_space, target, vectors = s["dask.space"], t["dask.space"], s["dask.vectors"]
        anchored = sum(F.cross_entropy(e @ vectors.T / ANCHOR_T, labels_of(batch)) for e in (in_space, target))
        return (in_space - target.detach()).pow(2).sum(1).mean() + anchored

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        if self.cfg.variant == "committed":
            return {}
        e_s, e_t = s[self.last_s], t[self.last_t]
        loss = self.cfg.distance * F.smooth_l1_loss(distances(e_s), distances(e_t))
        loss = loss + self.cfg.angle * F.smooth_l1_loss(angles(e_s), angles(e_t))
        if self.cfg.semantic and self.cfg.beta:  # with -b 0 there is no shared space for unequal widths
            loss = loss + self.cfg.semantic * self._semantic(s, t, batch)
        return {"dask": loss}

    def weights(self, progress: Progress) -> dict[str, float]:
        weights = super().weights(progress)
        return {**weights, "dask": 0.0} if self.cfg.variant == "committed" else weights
