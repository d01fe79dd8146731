"""DPCD (wsh081, code 2025): decoupled KD weighted by the teacher's confidence, and KD among the student's heads.

Path 1, term dpcd: alpha * TCKD + beta * NCKD (Zhao et al., CVPR 2022) from the teacher's logits; alpha and beta follow
the teacher's recent confidence. Path 2, dpcd_ced: every head of the student teaches the deeper heads and the student
itself; the non-target part is weighted by how much both agree. The teacher's heads are not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.option import check_range, not_negative, option, positive
from core.protocols import Batch, Context, Features, Progress, Terms, UserError
from crd.memory import gathered
from distiller_zoo._heads import WithHeads
from distiller_zoo._math import kl, labels_of, log_binary, non_target, warmed_up

THRESHOLDS = ((0.60, 0.65), (0.65, 0.70), (0.70, 0.75))  # of each tier: before the history is full, then its quantile
EMA = 0.9
AGREEMENT_EPS = 1e-8  # as published, for every class


def consensus(z: Tensor, labels: Tensor, teachers: Tensor, students: Tensor, cfg: DPCD.Config) -> Tensor:
    """Sum over pairs of T^2 [TCKD + ced_nckd * omega * NCKD], mean over B.

    z: [M, B, K], logits of heads and student; pair p is z[teachers[p]] -> z[students[p]]. omega = sum over the other
    classes of P_s P_t, without gradient. The target of TCKD keeps its gradient, as published, unless detached.
    """
    (m, b, k), temperature = z.shape, cfg.ced_T
    flat, every = (z / temperature).flatten(0, 1), labels.repeat(m)
    log_b = log_binary(flat, every).unflatten(0, (m, b))  # [M, B, 2]
    log_n = non_target(flat, every).log_softmax(1).unflatten(0, (m, b))  # [M, B, K - 1]
    with torch.no_grad():
        others = non_target(flat.softmax(1), every).unflatten(0, (m, b))
        omega = (others[students] * others[teachers]).sum(2) + k * AGREEMENT_EPS  # [P, B]
    target = log_b.detach() if cfg.detach else log_b
    tckd = F.kl_div(log_b[students], target[teachers], reduction="none", log_target=True).sum(2)
    nckd = F.kl_div(log_n[students], log_n.detach()[teachers], reduction="none", log_target=True).sum(2)
    return temperature**2 * (tckd + cfg.ced_nckd * omega * nckd).mean(1).sum()


def quantile_of(values: Tensor, q: float) -> Tensor:
    """torch.quantile of [N] with q known to the host: torch 2.11 waits for the device to check it."""
    place = q * (len(values) - 1)
    below = int(place)
    ordered = values.sort().values
    return torch.lerp(ordered[below], ordered[min(below + 1, len(values) - 1)], place - below)


class DPCD(WithHeads):
    """cls and dpcd_heads: cross-entropy of the student, and of its heads. The weight of dpcd rises over 20 epochs.

    Confidence: the teacher's probability of the label at T = 1. tau: a constant until `history` values are known, then
    their quantile; rho = sigmoid(sensitivity * (tau - moving mean)); alpha = clamp(1 + rho, 0.5, 2), beta =
    clamp(base * (1 - rho / 2), least, most). tau and sensitivity depend on the step; the published code never passes
    the step, so its values stay those of step 0: --dpcd_as_published. Losses are computed in log space, so saturated
    logits give no NaN. Pairs of a head with itself, which are zero, are left out. Processes share their confidences.
    """

    name = "dpcd"
    reads_labels = True
    reads_logits = True
    follows_time = True
    memory_confidence: Tensor
    memory_seen: Tensor
    memory_mean: Tensor

    @dataclass(frozen=True)
    class Config(WithHeads.Config):
        div: float = 0.0
        temperature: float = option(
            3.0, "temperature of the teacher's path; published 1 for ImageNet", "--dpcd_T", check=positive
        )
        base: float = option(
            6.0, "beta before confidence changes it; published 0.5 for ImageNet", "--dpcd_beta", check=not_negative
        )
        least: float = option(
            5.0,
            "smallest beta; published notes: 5 for vgg and wrn, 6 for resnet32x4 and ResNet50, 1 for resnet56",
            "--dpcd_beta_min",
            check=not_negative,
        )
        most: float = option(
            8.0,
            "largest beta; published notes: 8 for vgg and wrn, 10 for resnet32x4 and ResNet50, 4 for resnet56",
            "--dpcd_beta_max",
        )
        ramp: int = option(
            20,
            "epochs over which the weight of the teacher's path rises from 0; 0 for none",
            "--dpcd_ramp",
            check=not_negative,
        )
        history: int = option(2000, "number of stored confidences; published 20000 for ImageNet", "--dpcd_history")
        tiers: tuple[int, ...] = option(
            (200, 500), "the two steps at which the next tiers of tau begin", "--dpcd_tiers"
        )
        ced_T: float = option(3.0, "temperature of the path among the heads", "--dpcd_ced_T", check=positive)  # noqa: N815 (paper letter)
        ced_nckd: float = option(
            8.0,
            "weight of the non-target part of the path among the heads; published 2 for ImageNet",
            "--dpcd_ced_beta",
            check=not_negative,
        )
        detach: bool = option(False, "stop every gradient into the teaching head", "--dpcd_detach")
        as_published: bool = option(
            False, "use the schedule of the published code, which stays at step 0", "--dpcd_as_published"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            check_range("--dpcd_beta_max", self.most, least=self.least)
            if len(self.tiers) != len(THRESHOLDS) - 1 or sorted(self.tiers) != list(self.tiers):
                raise UserError(f"--dpcd_tiers {' '.join(map(str, self.tiers))} must be two increasing steps")

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        if cfg.history < ctx.batch_size:
            raise UserError(
                f"--dpcd_history {cfg.history} is less than one batch ({ctx.batch_size}): choose at least that"
            )
        self.batch_size, num = ctx.batch_size, len(self.heads)
        self.register_buffer("memory_confidence", torch.zeros(cfg.history + 1))  # the last place takes what is padding
        self.register_buffer("memory_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("memory_mean", torch.zeros(()))
        # heads 0..L-1, the student itself at L
        pairs = torch.tensor([(i, j) for i in range(num) for j in range(i + 1, num + 1)])
        self.register_buffer("teachers", pairs[:, 0].contiguous(), persistent=False)
        self.register_buffer("students", pairs[:, 1].contiguous(), persistent=False)

    @torch.no_grad()
    def _remember(self, confidence: Tensor) -> None:
        """[B] of this process; afterwards every process knows those of all. The last batch may be of unequal parts."""
        is_real = torch.ones_like(confidence)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            missing = max(self.batch_size - len(confidence), 0)  # several views of a sample exceed the batch size
            confidence, is_real = (gathered(F.pad(x, (0, missing))) for x in (confidence, is_real))
        count = is_real.sum()
        mean = (confidence * is_real).sum() / count
        first = self.memory_seen == 0
        self.memory_mean.copy_(torch.where(first, mean, EMA * self.memory_mean + (1 - EMA) * mean))
        places = (self.memory_seen + is_real.cumsum(0).long() - 1) % self.cfg.history
        places = torch.where(is_real > 0, places, self.cfg.history)
        self.memory_confidence.index_copy_(0, places, confidence.to(self.memory_confidence.dtype))
        self.memory_seen.add_(count.long())

    @torch.no_grad()
    def path_weights(self, step: int) -> tuple[Tensor, Tensor]:
        """(alpha, beta) at an optimiser step, scalars on the device."""
        step = 0 if self.cfg.as_published else step
        constant, quantile = THRESHOLDS[sum(step >= tier for tier in self.cfg.tiers)]
        known = quantile_of(self.memory_confidence[:-1].float(), quantile)
        tau = torch.where(self.memory_seen >= self.cfg.history, known, torch.full_like(known, constant))
        sensitivity = 12 * (1 - min(step / 1000, 1.0)) + 6
        rho = torch.sigmoid(sensitivity * (tau - self.memory_mean))
        return (1 + rho).clamp(0.5, 2.0), (self.cfg.base * (1 - 0.5 * rho)).clamp(self.cfg.least, self.cfg.most)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        labels, temperature = labels_of(batch), self.cfg.temperature
        self._remember(t["logits"].softmax(1).gather(1, labels[:, None]).squeeze(1))
        alpha, beta = self.path_weights(progress.global_step)
        z_s, z_t = self.comparable(s["logits"]), self.comparable(t["logits"])
        log_b_s, log_b_t = log_binary(z_s / temperature, labels), log_binary(z_t / temperature, labels)
        tckd = F.kl_div(log_b_s, log_b_t, reduction="batchmean", log_target=True) * temperature**2
        nckd = kl(non_target(z_s, labels), non_target(z_t, labels), temperature)
        z = torch.stack([*(s[head] for head in self.heads), s["logits"]])
        terms = {
            "dpcd": alpha * tckd + beta * nckd,
            "dpcd_ced": consensus(z, labels, self.teachers, self.students, self.cfg),
        }
        if self.cfg.cls:
            terms["dpcd_heads"] = self.entropy_of_heads(s, batch)
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        ramp = warmed_up(progress.epoch - 1, self.cfg.ramp)  # the published epochs begin at 0
        own = {"dpcd": self.cfg.beta * ramp, "dpcd_ced": self.cfg.beta, "dpcd_heads": self.cfg.cls}
        return super().weights(progress) | own
