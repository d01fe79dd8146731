"""The Distiller protocol: what a method may say, and what it gets if it says nothing.

| seam | what it is for | default |
|---|---|---|
| needs | taps of student and teacher, full batches only | logits alone |
| prepare | change the batch: rotations, second views, a view for the teacher alone | as it is |
| deploy | student-side work that survives into evaluation and export; may replace "logits" | none |
| connect | every other projection with parameters; runs inside the root that DDP, compile and autocast wrap | none |
| rows | which rows of the logits `terms` compares: clips, or frames | clips |
| terms | named, unweighted float32 scalars; owns no parameters | none |
| weights | term name -> weight, over time | cls, div and beta |
| unused | student parameters the method leaves out of training | none |
| after_backward | memory banks that follow the features; without gradient, after the optimiser's step | nothing |
| extra_phases | further optimisers (a discriminator) | none |
| teacher_mode | absent, frozen, or trained (an online peer) | frozen |
| before | a first stage, trained to completion | none |
| constant_lr | a learning rate of a stage's own, for as long as it lasts | the run's |
| readouts, reported | which logits evaluation reports, and the branches they come from | student, none |
| deployed_state, deployed_taps, deployed_head | what of the method is part of the exported student | nothing |

A method file holds one subclass, its Config and nothing else. Shape letters as in helper.protocols.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.protocols import (
    Batch,
    Context,
    Features,
    ModelSpec,
    Needs,
    Phase,
    Progress,
    Side,
    Tap,
    Tapped,
    Terms,
    UserError,
)

FRAME_LOGITS = "frame_logits"  # tap of networks that score every frame of a clip: [B*T, K]


def option(
    default: Any, help: str, flag: str | None = None, choices: Sequence[Any] | None = None, short: str | None = None
) -> Any:
    """A Config field that is also a command-line flag: `--<method>_<field>`, or the published spelling `flag`."""
    metadata = {"help": help, "flag": flag, "choices": choices, "short": short}
    return dataclasses.field(default=default, metadata=metadata)


def check_range(
    flag: str, value: float, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> None:
    """UserError unless above < value and least <= value <= most, as far as given; NaN and infinity never pass."""
    fits = math.isfinite(value)
    fits = fits and (above is None or value > above) and (least is None or value >= least)
    if fits and (most is None or value <= most):
        return
    bounds = ((above, "above"), (least, "at least"), (most, "at most"))
    wanted = " and ".join(f"{word} {bound:.12g}" for bound, word in bounds if bound is not None)
    raise UserError(f"{flag} {value} must be {wanted or 'a finite number'}")


def kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), mean over rows (Hinton et al. 2015, sections 2 and 2.1).

    student_logits, teacher_logits: [B, K]. In log space on both sides, so no 0 * log 0.
    """
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def kl_rows(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """kl() of every row by itself: [B]."""
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1) * temperature**2


def over_views(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean over samples of the weighted sum over views; rows: [B*V], those of one sample side by side; weights: [V]."""
    return (rows.unflatten(0, (-1, len(weights))) @ weights.to(rows.dtype)).mean()


def standardised(logits: Tensor) -> Tensor:
    """[B, K]: every row minus its mean, over its standard deviation (Sun et al., CVPR 2024, algorithm 1).

    The deviation is the unbiased one plus 1e-7, as published.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def distances(e: Tensor) -> Tensor:
    """[B, D] -> [B, B] Euclidean distances divided by their mean over pairs of different samples; diagonal 0."""
    square = e.pow(2).sum(1)
    others = 1 - torch.eye(len(e), dtype=e.dtype, device=e.device)
    d = (square[:, None] + square - 2 * e @ e.T).clamp_min(1e-12).sqrt() * others
    return d / (d.sum() / max(len(e) * (len(e) - 1), 1) + (len(e) == 1))  # one sample has no distance


def angles(e: Tensor) -> Tensor:
    """[B, D] -> [B, B, B] cosine at corner i between the directions to j and to k; 0 where two samples coincide."""
    towards = e[None] - e[:, None]  # [B, B, D]
    length = towards.norm(dim=2, keepdim=True)
    # the mask also stops the gradient of a pair without a direction, which the division would multiply by 1e12
    direction = towards / length.clamp_min(1e-12) * (length > 0)
    return direction @ direction.mT


def labels_of(batch: Batch) -> Tensor:
    """[B*V] one label per row of the logits: of mixed images that of the larger share."""
    labels = batch.target if batch.soft_target is None else batch.soft_target.argmax(1)
    return labels.repeat_interleave(batch.views)


def non_target(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, K] -> [B, K - 1], without the column of each row's label. No boolean mask: that would wait for the device."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, columns + (columns >= labels[:, None]))


def log_binary(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, K] -> [B, 2], log of (p_y, 1 - p_y): the label's logit against the log-sum-exp of all others.

    Taking the logarithm of the probabilities, as published, gives -inf where one of them underflows.
    """
    margin = logits.gather(1, labels[:, None]) - non_target(logits, labels).logsumexp(1, keepdim=True)
    return F.logsigmoid(torch.cat([margin, -margin], 1))


def detached(features: Features) -> Features:
    return {k: v.detach() for k, v in features.items()}


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W]; the taller one is average-pooled to the height and width of the other."""
    if a.shape[2] > b.shape[2]:
        return F.adaptive_avg_pool2d(a, (b.shape[2], b.shape[3])), b
    if a.shape[2] < b.shape[2]:
        return a, F.adaptive_avg_pool2d(b, (a.shape[2], a.shape[3]))
    return a, b


def paired_stages(
    student: ModelSpec, teacher: ModelSpec | None, method: str, deepest: bool = False
) -> tuple[tuple[str, str], ...]:
    """min(n_s, n_t) stages of both networks side by side: the first ones, as published for most methods (zip over
    feat[1:-1]), or the deepest ones."""
    stages_t = teacher.stages if teacher is not None else ()
    num = min(len(student.stages), len(stages_t))
    if not num:
        raise UserError(
            f"{method} pairs stage maps, and there are none to pair: {student.name} has {len(student.stages)}, "
            f"{teacher.name if teacher else 'no teacher'} has {len(stages_t)}"
        )
    part = slice(-num, None) if deepest else slice(num)
    return tuple(zip(student.stages[part], stages_t[part], strict=True))


def unequal_stages(
    student: ModelSpec, teacher: ModelSpec | None, method: str, deepest: bool = False
) -> tuple[str, ...]:
    """A note on what is paired, where one network has stages that the other lacks."""
    pairs = paired_stages(student, teacher, method, deepest)
    if teacher is None or len(student.stages) == len(teacher.stages):
        return ()
    return (
        f"{method} pairs {', '.join(f'{a} with {b}' for a, b in pairs)} of {student.name} and {teacher.name}; "
        f"{student.name} has {len(student.stages)} stages, {teacher.name} {len(teacher.stages)}",
    )


def last_stage(spec: ModelSpec | None, method: str) -> str:
    """Name of the deepest stage map (the published feat[-2]); UserError where a network has none."""
    if spec is None or not spec.stages:
        raise UserError(f"{method} reads the last stage map, and {spec.name if spec else 'no teacher'} has none")
    return spec.stages[-1]


def classified_map(spec: ModelSpec | None, method: str) -> str:
    """Name of the map whose mean the classifier reads: the last stage's, unless the network names another."""
    return (spec and spec.last_map) or last_stage(spec, method)


def preact(spec: ModelSpec | None, stages: Sequence[str], method: str) -> tuple[str, ...]:
    """Taps of the maps that the ReLU at the end of each stage reads; UserError where a network has none."""
    names = tuple(f"{stage}_preact" for stage in stages)
    if spec is None or (missing := [n for n in names if n not in spec.taps]):
        has = (
            "no teacher"
            if spec is None
            else f"{spec.name} has no tap {', '.join(missing)}; it has {', '.join(spec.taps)}"
        )
        raise UserError(f"{method} reads stage maps before their ReLU, and {has}")
    return names


def require_equal_channels(student: Side, teacher: Side, pairs: Sequence[tuple[str, str]], method: str) -> None:
    """UserError for the first pair of maps that differ in width."""
    for a, b in pairs:
        shape_s, shape_t = student.shapes[a], teacher.shapes[b]
        if shape_s[0] != shape_t[0]:
            raise UserError(
                f"{method} needs maps of equal width: {a} of {student.spec.name} is {shown(shape_s)}, "
                f"{b} of {teacher.spec.name} is {shown(shape_t)}; choose networks of one family and width"
            )


def refuse_single_samples(ctx: Context, method: str) -> None:
    """UserError where a batch of one would reach a batch norm of vectors, which has no statistics of one sample."""
    if (ctx.batch_size if ctx.smallest_batch is None else ctx.smallest_batch) < 2:
        raise UserError(
            f"{method} normalises pooled vectors over the batch, and {len(ctx.train_labels)} samples, at most "
            f"{ctx.batch_size} at a time, leave a batch of one: choose another --batch_size or --accumulate"
        )


def shown(shape: Sequence[int]) -> str:
    """(64, 8, 8) -> 64x8x8."""
    return "x".join(map(str, shape))


def resizing_conv(shape_s: Sequence[int], shape_t: Sequence[int]) -> nn.Module | None:
    """The convolution that takes a student's map [C, H, W] to the shape of a teacher's, with the published choice of
    kernel (FitNet, AB); None where the teacher's map is larger, but not twice as large."""
    (c_s, h_s, w_s), (c_t, h_t, w_t) = shape_s, shape_t
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        return nn.Conv2d(c_s, c_t, kernel_size=3, stride=2, padding=1)
    if (2 * h_s, 2 * w_s) == (h_t, w_t):
        return nn.ConvTranspose2d(c_s, c_t, kernel_size=4, stride=2, padding=1)
    if h_s >= h_t and w_s >= w_t:
        return nn.Conv2d(c_s, c_t, kernel_size=(1 + h_s - h_t, 1 + w_s - w_t))
    return None


def pooled_tap(spec: ModelSpec | None, method: str) -> str:
    """Name of the pooled feature that the classifier reads; UserError where a network has none."""
    if spec is None or "pooled" not in spec.taps:
        raise UserError(f"{method} reads the pooled feature, and {spec.name if spec else 'no teacher'} has none")
    return "pooled"


def head_width(side: Side) -> int:
    """How many values the classifier of a network reads per sample; UserError where it is not a linear one."""
    for module in side.head.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    raise UserError(f"the classifier of {side.spec.name} ({side.spec.head}) holds no linear layer to reuse")


def require_pooled_head(side: Side, method: str) -> None:
    """UserError where the classifier reads a transformer's class token, or anything but the mean over the last map."""
    if "class_token" in side.spec.taps:
        reads = "reads a class token"
    elif not side.pools_last and head_width(side) == side.shapes[classified_map(side.spec, method)][0]:
        reads = "reads another function of it than its mean"
    else:
        return
    raise UserError(
        f"{method} applies the classifier of {side.spec.name} to its last map, but that classifier {reads}; choose a "
        "network that only pools in between, e.g. a resnet, a wrn or a vgg"
    )


def unreached(student: Tapped) -> list[nn.Parameter]:
    """Parameters that none of the student's taps depends on: a dry run in eval mode, differentiated."""
    was_trainable = [p.requires_grad for p in student.model.parameters()]
    was_training = student.model.training
    student.model.requires_grad_(True).eval()  # batch-norm statistics stay as they were
    params = list(student.model.parameters())
    zeros = torch.zeros(1, *student.spec.input_shape, device=params[0].device)
    with torch.enable_grad():
        features = student({student.spec.input: zeros})
        read = [features[tap].sum() for tap in sorted(student.want)]
        gradients = torch.autograd.grad(read, params, allow_unused=True) if read else [None] * len(params)
    student.model.train(was_training)
    for p, trainable in zip(params, was_trainable, strict=True):
        p.requires_grad_(trainable)
    return [p for p, gradient in zip(params, gradients, strict=True) if gradient is None]


class Distiller(nn.Module):
    """One method. A subclass fills in `terms`, and other seams only where the paper needs them."""

    name: ClassVar[str]  # the registry name; also the name of the term that --beta weighs
    teacher_mode: ClassVar[Literal["absent", "frozen", "trained"]] = "frozen"
    before: ClassVar[type[Distiller] | None] = None
    reads_logits: bool = False  # whether `terms` or `deploy` depend on the student's own logits
    follows_time: bool = False  # whether `terms` read `progress`: compiled, they would be compiled anew all the time

    @dataclass(frozen=True)
    class Config:
        """Settings of a method. Subclasses override beta (and cls, div where published so) and add their own.

        Defaults are those of `--protocol simkd`; `authors` lists what differs in the method's own publication.
        """

        cls: float = 1.0  # weight of cross-entropy
        div: float = 1.0  # weight of the logit KL
        beta: float = 0.0  # weight of the method's own term
        kd_T: float = 4.0  # noqa: N815 (the published flag); temperature of the logit KL
        logit_stand: bool = False  # whether logit losses compare z-scored logits (LSKD)
        frame_logits: bool = False  # whether logit losses compare the scores of every frame of a clip
        authors: ClassVar[Mapping[str, float]] = {}

    def __init__(self, cfg: Any, ctx: Context):
        super().__init__()
        self.cfg = cfg

    @classmethod
    def needs(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs()

    @classmethod
    def notes(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        """Sentences the run prints once: which layers were paired, what was shortened."""
        return ()

    @classmethod
    def constant_lr(cls, cfg: Any, student: ModelSpec) -> float | None:
        """The learning rate of this stage, unscheduled. None: a final stage follows the run's schedule, a first stage
        keeps the rate the schedule starts with."""
        return None

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def deploy(self, s: Features) -> Features:
        return s

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        """Add projected features under names of the method's own ("crd.v_s"); t is {} without a teacher."""
        return s, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"cls": self.cfg.cls, "div": self.cfg.div, self.name: self.cfg.beta}

    def unused(self, student: Tapped) -> Sequence[nn.Parameter]:
        """Student parameters without a gradient. By default what lies behind the taps, if no term reads the logits."""
        weights = self.weights(Progress())
        if self.reads_logits or weights.get("cls") or weights.get("div"):
            return ()
        return unreached(student)

    @property
    def keeps_network(self) -> bool:
        """Whether what is evaluated never changes, as a frozen backbone; the latest epoch is then the best."""
        return False

    def after_backward(self, s: Features, t: Features, batch: Batch) -> None:
        return None

    @property
    def looks_back(self) -> bool:
        """Whether features are kept until after the optimiser's step, for after_backward()."""
        return type(self).after_backward is not Distiller.after_backward

    def extra_phases(self) -> tuple[Phase, ...]:
        return ()

    def reported(self) -> tuple[str, ...]:
        """Branches of the student (auxiliary heads) that `deploy` or `readouts` read; no other is computed then."""
        return ()

    def readouts(self, features: Features) -> dict[str, Tensor]:
        return {"student": features["logits"]}

    def own_logits(self, s: Features) -> Tensor:
        """[B*V, K] the logits that cls and div act on."""
        return s["logits"]

    def comparable(self, logits: Tensor) -> Tensor:
        """Logits as a logit loss compares them: as they are, or z-scored with --logit_stand."""
        return standardised(logits) if self.cfg.logit_stand else logits

    def rows(self, s: Features, t: Features, batch: Batch) -> tuple[Features, Features, Batch]:
        """What `terms` is given. With --frame_logits a method that reads logits sees those of the T frames of a clip as
        its views, [B*T, K]."""
        if not (self.cfg.frame_logits and self.reads_logits):
            return s, t, batch
        views = len(s[FRAME_LOGITS]) // len(batch)
        s, t = ({**f, "logits": f[FRAME_LOGITS]} if f else f for f in (s, t))
        return s, t, dataclasses.replace(batch, views=views, crop=None, view_id=None)

    def weights_of_views(self) -> Tensor | None:
        """[V] how much each view of a sample counts in div, where they do not count alike."""
        return None

    def common_terms(self, s: Features, t: Features, batch: Batch, weights: Mapping[str, float]) -> Terms:
        """cls: cross-entropy of view 0, mean over B. div: kl(), mean over all views (all frames, with --frame_logits).
        weights: of the moment, as weights(); weight 0: not computed."""
        logits = self.own_logits(s)
        terms: Terms = {}
        if weights.get("cls"):
            target = batch.target if batch.soft_target is None else batch.soft_target
            terms["cls"] = F.cross_entropy(logits[:: batch.views], target)
        if weights.get("div") and "logits" in t:
            z_s, z_t = (s[FRAME_LOGITS], t[FRAME_LOGITS]) if self.cfg.frame_logits else (logits, t["logits"])
            z_s, z_t, views = self.comparable(z_s), self.comparable(z_t), self.weights_of_views()
            if views is None:
                terms["div"] = kl(z_s, z_t, self.cfg.kd_T)
            else:
                terms["div"] = over_views(kl_rows(z_s, z_t, self.cfg.kd_T), views)
        return terms

    def deploying(self) -> Distiller | None:
        """The method whose `deploy` does something: this one, a member of a combination, or none."""
        return None if type(self).deploy is Distiller.deploy else self

    def deployed_state(self) -> dict[str, dict[str, Tensor]]:
        """Checkpoint entry -> state, of everything `deploy` uses."""
        return {}

    def load_deployed_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        return None

    def deployed_taps(self, student: ModelSpec) -> Mapping[str, Tap]:
        """Taps whose meaning `deploy` changed; module paths inside this method."""
        return {}

    def deployed_head(self) -> str | None:
        """Path inside this method of the classifier that `deploy` uses in place of the student's."""
        return None


class Peers(Distiller):
    """Two networks of one architecture that train each other; `t` holds the features of the second, with gradient.

    Terms cls and div of the student, peer_cls and peer_div of its peer, with the same weights; each learns from the
    other's logits as they are, without a gradient into them.
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


class StagePairs(Distiller):
    """A method that compares the stage maps of both networks, side by side; `pairs` holds their tap names."""

    def __init__(self, cfg: Any, ctx: Context):
        super().__init__(cfg, ctx)
        self.pairs = paired_stages(ctx.student.spec, None if ctx.teacher is None else ctx.teacher.spec, self.name)

    @classmethod
    def needs(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        stages_s, stages_t = zip(*paired_stages(student, teacher, cls.name), strict=True)
        return Needs(stages_s, stages_t)

    @classmethod
    def notes(cls, cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        return unequal_stages(student, teacher, cls.name)


@dataclass(frozen=True)
class CombinedConfig(Distiller.Config):
    members: tuple[tuple[type[Distiller], Any], ...] = ()


class Combined(Distiller):
    """Several methods on one student: `--distill kd+crd`. cls and div are computed once."""

    Config = CombinedConfig

    def __init__(self, cfg: CombinedConfig, ctx: Context):
        super().__init__(cfg, ctx)
        self.check(cfg)
        self.name = "+".join(m.name for m, _ in cfg.members)  # type: ignore[misc]
        self.members = nn.ModuleDict({m.name: m(c, ctx) for m, c in cfg.members})
        self.reads_logits = any(m.reads_logits for m in self._each())  # some know when they are built
        self.follows_time = any(m.follows_time for m in self._each())

    @staticmethod
    def check(cfg: CombinedConfig) -> None:
        methods = [m for m, _ in cfg.members]
        names = [m.name for m in methods]
        if len(set(names)) < len(names):
            raise UserError(f"{'+'.join(names)} names a method twice")
        staged = [m.name for m in methods if m.before is not None]
        if staged:
            raise UserError(f"{', '.join(staged)} trains a stage of its own first and cannot be combined")
        heads = [m.name for m in methods if m.deploy is not Distiller.deploy]
        if len(heads) > 1:
            raise UserError(f"{' and '.join(heads)} both change what is deployed; combine at most one of them")
        replacing = [m.name for m in methods if m.deployed_head is not Distiller.deployed_head]
        idle = [m.name for m in methods if m.terms is Distiller.terms and not (cfg.cls or cfg.div)]
        if replacing and idle:
            raise UserError(
                f"{replacing[0]} replaces the classifier that {' and '.join(idle)} would train, and weighs it 0: "
                f"leave {' and '.join(idle)} out, or train it too with -c and -d"
            )
        online = [m.name for m in methods if m.teacher_mode == "trained"]
        if online:
            raise UserError(f"{', '.join(online)} trains two peers and cannot be combined")

    @classmethod
    def needs(cls, cfg: CombinedConfig, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        needs = [m.needs(c, student, teacher) for m, c in cfg.members]
        return Needs(
            tuple(dict.fromkeys(x for n in needs for x in n.student)),
            tuple(dict.fromkeys(x for n in needs for x in n.teacher)),
            any(n.full_batches for n in needs),
        )

    @classmethod
    def notes(cls, cfg: CombinedConfig, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        return [note for m, c in cfg.members for note in m.notes(c, student, teacher)]

    def _each(self) -> list[Distiller]:
        return list(self.members.values())  # type: ignore[arg-type]

    def deploying(self) -> Distiller | None:
        return next((m for m in self._each() if m.deploying() is not None), None)

    def prepare(self, batch: Batch) -> Batch:
        for m in self._each():
            batch = m.prepare(batch)
        return batch

    def rows(self, s: Features, t: Features, batch: Batch) -> tuple[Features, Features, Batch]:
        return s, t, batch  # each member has its own

    def deploy(self, s: Features) -> Features:
        return s if (head := self.deploying()) is None else head.deploy(s)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        for m in self._each():
            s, t = m.connect(s, t)
        return s, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        terms: Terms = {}
        for m in self._each():
            terms.update(m.terms(*m.rows(s, t, batch), progress))
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        weights: dict[str, float] = {}
        for m in self._each():
            weights.update(m.weights(progress))
        return {**weights, "cls": self.cfg.cls, "div": self.cfg.div}

    def weights_of_views(self) -> Tensor | None:
        return next((w for m in self._each() if (w := m.weights_of_views()) is not None), None)

    def after_backward(self, s: Features, t: Features, batch: Batch) -> None:
        for m in self._each():
            m.after_backward(s, t, batch)

    @property
    def looks_back(self) -> bool:
        return any(m.looks_back for m in self._each())

    def extra_phases(self) -> tuple[Phase, ...]:
        return tuple(p for m in self._each() for p in m.extra_phases())

    def reported(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(x for m in self._each() for x in m.reported()))

    def readouts(self, features: Features) -> dict[str, Tensor]:
        return {k: v for m in self._each() for k, v in m.readouts(features).items()}

    def own_logits(self, s: Features) -> Tensor:
        return s["logits"] if (head := self.deploying()) is None else head.own_logits(s)

    def deployed_state(self) -> dict[str, dict[str, Tensor]]:
        return {} if (head := self.deploying()) is None else head.deployed_state()

    def load_deployed_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        if (head := self.deploying()) is not None:
            head.load_deployed_state(state)

    def deployed_taps(self, student: ModelSpec) -> Mapping[str, Tap]:
        if (head := self.deploying()) is None:
            return {}
        return {
            k: dataclasses.replace(tap, module=f"members.{head.name}.{tap.module}")
            for k, tap in head.deployed_taps(student).items()
        }

    def deployed_head(self) -> str | None:
        head = self.deploying()
        path = None if head is None else head.deployed_head()
        return None if path is None else f"members.{head.name}.{path}"  # type: ignore[union-attr]


def weighted_sum(terms: Terms, weights: Mapping[str, float]) -> Tensor:
    """Sum of weight * term; a term nobody weighs is a mistake and raises."""
    unweighted = terms.keys() - weights.keys()
    if unweighted:
        raise KeyError(f"terms without a weight: {sorted(unweighted)}; weights exist for {sorted(weights)}")
    if not terms:
        raise UserError("every term of the loss has weight 0: raise one of -c, -d, -b")
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
