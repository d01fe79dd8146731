"""The Distiller protocol: the seams that a method may override, and their defaults.

| seam | purpose | default |
|---|---|---|
| needs | taps of student and teacher; full batches only | only logits |
| prepare_teacher | learn from the teacher's features of the whole training set, once, before the first step | nothing |
| prepare | change the batch: rotations, second views, a view for the teacher only | unchanged |
| deployment | layers on top of the student that evaluation and export keep | none |
| connect | all other projections with parameters; runs inside the root that DDP, compile and autocast wrap | none |
| frames_as_views | which rows of the logits `terms` compares: clips, or frames | clips |
| row_weights | weight of each row in a logit loss | equal |
| div_rows | values of `div`, row by row | the KL |
| terms | named, unweighted float32 scalars; owns no parameters | none |
| weights | term name -> weight, over time | cls, div and beta |
| unused | student parameters that the method does not train | none |
| after_step | update memory banks with the features; without gradient, after the optimiser's step | nothing |
| parts | terms whose gradients are computed separately, with a momentum each or none | one gradient of all |
| join_gradients | change those gradients before the optimiser's step | unchanged |
| extra_phases | further optimisers (a discriminator) | none |
| teacher_mode | absent, frozen, or trained (an online peer) | frozen |
| before | a first stage, trained to completion | none |
| constant_lr | a constant learning rate for a stage | the run's |
| readouts, reported | the logits that evaluation reports, and their branches | student, none |

A method file holds one subclass, its Config and nothing else. Shape letters as in core.protocols.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import NAMED, RESULT, Around, Config, not_negative, option, positive
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
    Tap,
    Tapped,
    Terms,
    UserError,
)
from distiller_zoo._math import STD_EPS, detached, entropy_weights, kl, kl_rows, over_views, standardised
from distiller_zoo._stages import last_stage, paired_stages, pooled_tap, unequal_stages, unreached

FRAME_LOGITS = "frame_logits"  # tap of networks that score every frame of a clip: [B*T, K]
OWN_LOGITS = "own_logits"  # logits of the student's own classifier, if the deployment has another: [B*V, K]


@dataclass(frozen=True)
class LabelLossConfig(Config):
    """Settings of cross-entropy, for teachers and students."""

    heading = "loss"

    class_weight: str = option(
        "none",
        "weights of the classes in cross-entropy: none, or balanced: the inverse frequency of the class in training",
        choices=("none", "balanced"),
        role=RESULT,
    )

    def idle(self, around: Around) -> dict[str, str]:
        labels = around.data.train_labels
        counts = labels[labels >= 0].bincount(minlength=around.data.num_classes)
        if self.class_weight != "balanced" or len(counts.unique()) > 1:
            return {}
        return {"class_weight": f"every class of {around.dataset} has {int(counts[0])} samples"}


@dataclass(frozen=True)
class LossConfig(Config):
    """Settings of the loss of every method. The defaults are those of `--protocol simkd`."""

    heading = "loss"

    cls: float = option(
        1.0,
        "weight of cross-entropy (default: the method's)",
        short=("-c", "-r", "--gamma"),
        check=not_negative,
        role=NAMED,
    )
    div: float = option(
        1.0,
        "weight of the logit KL (default: the method's)",
        short=("-d", "-a", "--alpha"),
        check=not_negative,
        role=NAMED,
    )
    beta: float = option(
        0.0, "weight of the method's own term (default: the method's)", short="-b", check=not_negative, role=NAMED
    )
    kd_T: float = option(4.0, "temperature of the logit KL", check=positive, role=RESULT)  # noqa: N815
    logit_stand: bool = option(
        False,
        "compare z-scored logits in every logit loss (LSKD; published with kd, -c 0.1 -d 9 --kd_T 2)",
        role=RESULT,
    )
    norm_kd: bool = option(
        False,
        "multiply the temperatures of logit losses by each row's standard deviation (NormKD; published with kd, "
        "-c 0.1 -d 0.9 --kd_T 2)",
        role=RESULT,
    )
    ea_weight: bool = option(
        False,
        "weigh each sample of a logit loss by the entropies of teacher and student (EA-KD; published with kd, "
        "-c 0.1 -d 0.9)",
        role=RESULT,
    )
    ea_T: float = option(  # noqa: N815
        3.0, "temperature of the entropies of --ea_weight; published 2 on ImageNet", check=positive, role=RESULT
    )
    ea_as_published: bool = option(
        False,
        "in --ea_weight, bound the student's entropy by the number of classes instead of its logarithm, as the "
        "published code for kd and dkd on CIFAR-100 does",
        role=RESULT,
    )
    frame_logits: bool = option(
        False, "in logit losses, compare the scores of every frame instead of those of the clip", role=RESULT
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logit_stand and self.norm_kd:
            raise UserError("--logit_stand and --norm_kd both set the scale of the logits: give one of them")

    def idle(self, around: Around) -> dict[str, str]:
        why = {} if around.own_term else {"beta": f"--distill {around.distill} has no term of its own"}
        if around.alone:
            return why | dict.fromkeys(("div", "kd_T"), f"--distill {around.distill} uses no teacher")
        return why if self.div else why | {"kd_T": "the logit KL has weight 0"}


# the settings that every logit loss reads
LOGIT_FLAGS = ("logit_stand", "norm_kd", "ea_weight", "ea_T", "ea_as_published")


def inverse_frequencies(labels: Tensor, num_classes: int) -> Tensor:
    """[K] N / (K * count of the class), 1 on average over the samples; 0 for a class without samples. Samples
    without a label (-1) do not count."""
    counts = torch.bincount(labels[labels >= 0], minlength=num_classes)
    return torch.where(counts > 0, counts.sum() / (num_classes * counts.clamp_min(1)), 0.0)


class Deployment(nn.Module):
    """The deployed part of a method: layers on top of the student, which become a part of it.

    forward: features -> features; if it makes new "logits", the student's own are kept as OWN_LOGITS. method: registry
    name. cfg: of the method. taps: taps of the student with a changed meaning; module paths inside this module.
    head: path, inside this module, of the classifier that replaces the student's; None: the student's is kept.
    """

    def __init__(self, method: str, cfg: Any, taps: Mapping[str, Tap], head: str | None = None):
        super().__init__()
        self.method, self.cfg, self.taps, self.head = method, cfg, taps, head

    def forward(self, s: Features) -> Features:
        raise NotImplementedError

    def entries(self) -> dict[str, dict[str, Tensor]]:
        """Checkpoint entry -> state."""
        raise NotImplementedError

    def load_entries(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        raise NotImplementedError


class Distiller(nn.Module):
    """One method. A subclass implements `terms`, and other seams only if the paper needs them."""

    name: ClassVar[str]  # registry name, and name of the term whose weight is --beta
    teacher_mode: ClassVar[Literal["absent", "frozen", "trained"]] = "frozen"
    before: ClassVar[type[Distiller] | None] = None
    relational: ClassVar[bool] = False  # whether it compares the samples of a batch
    reads_logits: bool = False  # whether `terms` or the deployment depend on the student's own logits
    reads_teacher_head: bool = False  # whether `terms` apply the teacher's classifier or compare its logits alone
    reads_labels: bool = False  # whether `terms` depend on the labels of the batch
    several_teachers: bool = False  # whether it reads features of further teachers, named "@1", "@2", ...
    by_index: bool = False  # whether it stores something for every training sample, by batch.index
    weighs_rows: bool = False  # whether `terms` average with over_rows(), to which --ea_weight and --norm_kd apply
    follows_time: bool = False  # whether `terms` read `progress`: torch.compile would recompile them again and again

    @dataclass(frozen=True)
    class Config(LossConfig, LabelLossConfig):
        """Settings of a method. Subclasses override beta (and cls, div if published so) and add their own.

        `authors` holds the settings that differ in the method's own publication.
        """

        authors: ClassVar[Mapping[str, float]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "Config" in cls.__dict__ and "name" in cls.__dict__:
            cls.Config.prefix = f"{cls.name}_"

    def __init__(self, cfg: Any, ctx: Context):
        super().__init__()
        self.cfg = cfg
        balanced = cfg.class_weight == "balanced"
        weights = inverse_frequencies(ctx.train_labels, ctx.num_classes) if balanced else None
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None

    def each(self) -> list[Distiller]:
        """The method, or the members of a combination."""
        return [self]

    @classmethod
    def needs(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs()

    @classmethod
    def needs_labels(cls, cfg: Any) -> bool:
        """Whether the method's own terms need a label of every sample, or store something for every labelled one."""
        return cls.reads_labels or cls.by_index

    @classmethod
    def needs_classifier(cls, cfg: Any) -> bool:
        """Whether the teacher must have a classifier: the method compares logits, or applies that classifier."""
        return bool(cfg.div) or cls.reads_logits or cls.reads_teacher_head

    @classmethod
    def notes(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        """Sentences that the run prints once, such as which layers are paired."""
        return ()

    @classmethod
    def constant_lr(cls, cfg: Any, student: ModelSpec) -> float | None:
        """The constant learning rate of this stage. None: the last stage follows the run's schedule, a first stage
        keeps the initial rate of the schedule."""
        return None

    def prepare_teacher(self, seen: Callable[[], Iterable[tuple[Features, Batch]]]) -> None:
        """seen(): the teacher's features of this process's part of the training set, batch by batch. Keep the result
        in a buffer, so that a resumed run has it."""
        return None

    @property
    def prepares_teacher(self) -> bool:
        return type(self).prepare_teacher is not Distiller.prepare_teacher

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def deployment(self) -> Deployment | None:
        """The part of this method that is deployed with the student; every call returns the same module."""
        return None

    def deploy(self, s: Features) -> Features:
        """The student's features after the deployed layers."""
        return s if (deployment := self.deployment()) is None else deployment(s)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        """Add projected features under names with the method's prefix ("crd.v_s"); t is {} without a teacher."""
        return s, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"cls": self.cfg.cls, "div": self.cfg.div, self.name: self.cfg.beta}

    def unused(self, student: Tapped) -> Sequence[nn.Parameter]:
        """Student parameters without a gradient. By default those after the taps, if no term reads the logits."""
        weights = self.weights(Progress())
        later = ("cls" in weights and self.cfg.cls) or ("div" in weights and self.cfg.div)  # as kdpp's div begins at 0
        if self.reads_logits or weights.get("cls") or weights.get("div") or later:
            return ()
        return unreached(student)

    @property
    def keeps_network(self) -> bool:
        """Whether the evaluated network never changes (a frozen backbone); then the latest epoch counts as the best."""
        return False

    def after_step(self, s: Features, t: Features, batch: Batch) -> None:
        return None

    @property
    def wants_after_step(self) -> bool:
        """Whether features are kept until after the optimiser's step, for after_step()."""
        return type(self).after_step is not Distiller.after_step

    def parts(self) -> tuple[Part, ...]:
        """Parts in the order in which the optimiser applies them; (): one gradient of the whole loss."""
        return ()

    def join_gradients(self, gradients: list[Gradients]) -> list[Gradients]:
        """gradients: of every part, mean over processes; returns them, changed in place or new."""
        return gradients

    def extra_phases(self) -> tuple[Phase, ...]:
        return ()

    def reported(self) -> tuple[str, ...]:
        """Branches of the student (auxiliary heads) that evaluation reads; the others are not computed then."""
        return ()

    def readouts(self, features: Features) -> dict[str, Tensor]:
        return {"student": features["logits"]}

    def comparable(self, logits: Tensor) -> Tensor:
        """The logits that a logit loss compares: unchanged, z-scored with --logit_stand, or divided by their standard
        deviation with --norm_kd, so that a temperature T acts as T * std (Chi et al., 2023; the student's deviation has
        a gradient)."""
        if self.cfg.norm_kd:
            return logits / (logits.std(1, keepdim=True) + STD_EPS)
        return standardised(logits) if self.cfg.logit_stand else logits

    def row_weights(self, z_s: Tensor, z_t: Tensor) -> Tensor | None:
        """[R] weight of each row in a logit loss, without gradient; None: equal. z_s, z_t: raw logits [R, K].

        --ea_weight: entropy_weights(), from z-scored logits with --logit_stand. --norm_kd: the teacher's variance, so
        that the factor T^2 of a loss becomes the square of the teacher's effective temperature. A loss that reads
        comparable() alone (dist, deepkd, dpcd, the mixed logits of fcfd) keeps its own factor.
        """
        weights = None
        if self.cfg.ea_weight:
            bound = z_s.shape[1] if self.cfg.ea_as_published else math.log(z_s.shape[1])
            seen_s, seen_t = (standardised(z) if self.cfg.logit_stand else z for z in (z_s, z_t))
            weights = entropy_weights(seen_s, seen_t.detach(), self.cfg.ea_T, bound)
        if self.cfg.norm_kd:
            variance = (z_t.detach().std(1) + STD_EPS).pow(2)
            weights = variance if weights is None else weights * variance
        return weights

    def weighted_rows(self, rows: Tensor, z_s: Tensor, z_t: Tensor) -> Tensor:
        """[R] values of a logit loss, each times its row_weights()."""
        weights = self.row_weights(z_s, z_t)
        return rows if weights is None else rows * weights

    def over_rows(self, rows: Tensor, z_s: Tensor, z_t: Tensor) -> Tensor:
        """Mean of weighted_rows()."""
        return self.weighted_rows(rows, z_s, z_t).mean()

    def div_rows(self, z_s: Tensor, z_t: Tensor) -> Tensor | None:
        """[R] values of div before row_weights(), if they are not kl_rows(); z_s, z_t: raw logits [R, K]."""
        return None

    def frames_as_views(self, s: Features, t: Features, batch: Batch) -> tuple[Features, Features, Batch]:
        """The features for `terms`. With --frame_logits a method that reads logits gets those of the T frames of a clip
        as views, [B*T, K]."""
        if not (self.cfg.frame_logits and self.reads_logits):
            return s, t, batch
        views = len(s[FRAME_LOGITS]) // len(batch)
        s, t = ({**f, "logits": f[FRAME_LOGITS]} if f else f for f in (s, t))
        return s, t, dataclasses.replace(batch, views=views, crop=None, view_id=None)

    def weights_of_views(self) -> Tensor | None:
        """[V] weight of each view of a sample in div; None: equal."""
        return None

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over rows [R], each times the weight of its class; target: labels [R], or soft ones [R, K], whose every
        class has its own weight."""
        if self.class_weights is None:
            return F.cross_entropy(logits, target)
        return F.cross_entropy(logits, target, self.class_weights, reduction="sum") / len(target)

    def common_terms(self, s: Features, t: Features, batch: Batch, weights: Mapping[str, float]) -> Terms:
        """cls: cross-entropy of view 0, mean over B. div: the KL, or div_rows(), times row_weights(); mean
        over all views (all frames, with --frame_logits).
        weights: the present ones, see weights(); terms with weight 0 are not computed."""
        logits = s.get(OWN_LOGITS, s["logits"])
        terms: Terms = {}
        if weights.get("cls"):
            target = batch.target if batch.soft_target is None else batch.soft_target
            terms["cls"] = self.cross_entropy(logits[:: batch.views][: batch.labelled], target[: batch.labelled])
        if weights.get("div") and "logits" in t:
            z_s, z_t = (s[FRAME_LOGITS], t[FRAME_LOGITS]) if self.cfg.frame_logits else (logits, t["logits"])
            terms["div"] = self._div(z_s, z_t)
        return terms

    def _div(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        rows, views = self.div_rows(z_s, z_t), self.weights_of_views()
        if rows is None:
            seen = self.comparable(z_s), self.comparable(z_t), self.cfg.kd_T
            if views is None:
                return kl(*seen, self.row_weights(z_s, z_t))
            rows = kl_rows(*seen)
        rows = self.weighted_rows(rows, z_s, z_t)
        return rows.mean() if views is None else over_views(rows, views)


@dataclass(frozen=True)
class WithoutKL(Distiller.Config):
    """Settings of a method that was published without the logit KL."""

    authors: ClassVar[Mapping[str, float]] = {"div": 0.0}


class Peers(Distiller):
    """Two networks of one architecture that train each other; `t` holds the features of the second, with gradient.

    Terms cls and div of the student, peer_cls and peer_div of its peer, with the same weights; each learns from the
    other's present logits, without a gradient into them.
    """

    teacher_mode = "trained"

    def common_terms(self, s: Features, t: Features, batch: Batch, weights: Mapping[str, float]) -> Terms:
        own = super().common_terms(s, detached(t), batch, weights)
        peers = super().common_terms(t, detached(s), batch, weights)
        return own | {f"peer_{name}": value for name, value in peers.items()}

    def weights(self, progress: Progress) -> dict[str, float]:
        weights = super().weights(progress)
        return weights | {f"peer_{name}": weights[name] for name in ("cls", "div")}

    def readouts(self, features: Features) -> dict[str, Tensor]:
        return super().readouts(features) | ({"peer": features["peer"]} if "peer" in features else {})


class LogitLoss(Distiller):
    """A loss of logits in place of the KL; --ea_weight and --norm_kd apply to its rows."""

    reads_logits = True
    weighs_rows = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.0


class LastMaps(Distiller):
    """A method that compares one tap of both networks, `last_s` and `last_t`: the last stage map, unless `tap_of` names
    another."""

    def __init__(self, cfg: Any, ctx: Context):
        super().__init__(cfg, ctx)
        self.last_s = self.tap_of(ctx.student.spec, self.name)
        self.last_t = self.tap_of(None if ctx.teacher is None else ctx.teacher.spec, self.name)

    @staticmethod
    def tap_of(spec: ModelSpec | None, method: str) -> str:
        return last_stage(spec, method)

    @classmethod
    def needs(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs((cls.tap_of(student, cls.name),), (cls.tap_of(teacher, cls.name),))


class PooledVectors(LastMaps):
    """A method that compares the pooled features of both networks."""

    tap_of = staticmethod(pooled_tap)


class StagePairs(Distiller):
    """A method that compares maps of both networks in pairs; `pairs` holds their tap names: those of the first stages,
    or the deepest ones, unless pairs_of() names others."""

    deepest: ClassVar[bool] = False

    def __init__(self, cfg: Any, ctx: Context):
        super().__init__(cfg, ctx)
        self.pairs = self.pairs_of(ctx.student.spec, None if ctx.teacher is None else ctx.teacher.spec)

    @classmethod
    def pairs_of(cls, student: ModelSpec, teacher: ModelSpec | None) -> tuple[tuple[str, str], ...]:
        return paired_stages(student, teacher, cls.name, cls.deepest)

    @classmethod
    def needs(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        names_s, names_t = zip(*cls.pairs_of(student, teacher), strict=True)
        return Needs(names_s, names_t)

    @classmethod
    def notes(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        return unequal_stages(student, teacher, cls.name, cls.deepest)
