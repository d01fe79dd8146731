"""From a batch to the loss of a method: shared by train_student.py and your own training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from core.protocols import Batch, Features, Gradients, ModelSpec, Needs, Part, Progress, TeacherSource, Terms, UserError
from core.taps import TappedNet
from distiller_zoo._math import detached, weighted_sum
from distiller_zoo.base import FRAME_LOGITS, Deployment, Distiller


def chain_of(method: type[Distiller]) -> tuple[type[Distiller], ...]:
    """First stages first, the method itself last."""
    chain = [method]
    while chain[0].before is not None:
        chain.insert(0, chain[0].before)
    return tuple(chain)


def needs_of(method: type[Distiller], cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
    """The needs of one stage, including the scores of every frame if they are compared."""
    needs = method.needs(cfg, student, teacher)
    if not cfg.frame_logits or teacher is None:
        return needs
    for spec in (student, teacher):
        if FRAME_LOGITS not in spec.taps:
            raise UserError(
                f"--frame_logits compares the scores of every frame, but {spec.name} has none: leave it out to "
                "compare the scores of clips"
            )
    return dataclasses.replace(needs, student=(*needs.student, FRAME_LOGITS), teacher=(*needs.teacher, FRAME_LOGITS))


def union_of_needs(method: type[Distiller], cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
    """The needs of all stages."""
    return reduce(or_, (needs_of(m, cfg, student, teacher) for m in chain_of(method)), Needs())


class Trained(nn.Module):
    """All trained modules under one root, which DDP and torch.compile wrap."""

    def __init__(self, student: TappedNet, peer: TappedNet | None, method: Distiller):
        super().__init__()
        self.student, self.peer, self.method = student, peer, method

    def forward(self, inputs: Mapping[str, Tensor], t: Features) -> tuple[Features, Features]:
        if self.peer is not None:
            t = self.peer(inputs)
        return self.method.connect(self.method.deploy(self.student(inputs)), t)


class Deployed(nn.Module):
    """The network to evaluate, average and export: the student and the deployed part of the method.

    bare: only the student's logits, without a peer and without reported heads.
    """

    def __init__(self, student: TappedNet, method: Distiller, peer: TappedNet | None = None, bare: bool = False):
        super().__init__()
        self.student, self.method, self.peer, self.bare = student, method, peer, bare

    @property
    def deployment(self) -> Deployment | None:
        return self.method.deployment()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Readout name -> logits [B, K]; "student" comes first."""
        features = self.method.deploy(self.student(inputs, () if self.bare else self.method.reported()))
        if self.bare:
            return {"student": features["logits"]}
        if self.peer is not None:
            features = {**features, "peer": self.peer(inputs, ())["logits"]}
        return self.method.readouts(features)


class Composite(nn.Module):
    """A student as one plain model: backbone, the deployed layers of its method, logits. Reads images in [0, 1]."""

    def __init__(self, student: TappedNet, deployment: Deployment | None):
        super().__init__()
        self.student, self.deployment = student, deployment

    def forward(self, x: Tensor) -> Tensor:
        features = self.student({self.student.spec.input: x}, ())
        return (features if self.deployment is None else self.deployment(features))["logits"]


def parts_of(terms: Terms, weights: Mapping[str, float], parts: Sequence[Part]) -> tuple[Tensor | None, ...]:
    """The loss of every part; None if none of its terms was computed."""
    named = {name for part in parts for name in part.terms or ()}
    losses = []
    for part in parts:
        own = {k: v for k, v in terms.items() if (k not in named if part.terms is None else k in part.terms)}
        losses.append(weighted_sum(own, weights) if own else None)
    return tuple(losses)


def gradients_of(loss: Tensor | None, params: Sequence[nn.Parameter], share: float, last: bool) -> Gradients:
    """share: factor of the loss. last: whether this is the last backward pass through its graph."""
    if loss is None:
        return [None] * len(params)
    return list(
        torch.autograd.grad(loss if share == 1 else loss * share, params, retain_graph=not last, allow_unused=True)
    )


def added(a: Gradients, b: Gradients) -> Gradients:
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def averaged_over_ranks(gradients: Gradients) -> Gradients:
    """Mean over processes, in one message; a parameter that a loss does not reach is the same one in all processes."""
    there = [g for g in gradients if g is not None]
    if dist.is_initialized() and there:
        flat = torch.cat([g.flatten() for g in there])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for g, mean in zip(there, flat.split([g.numel() for g in there]), strict=True):
            g.copy_(mean.view(g.shape))
    return gradients


def full_precision(features: Features) -> Features:
    """Losses are computed in float32, even if the forward pass ran under autocast."""
    low = (torch.bfloat16, torch.float16)
    cast = {id(v): v.float() for v in features.values() if v.dtype in low}  # one tensor may have several names
    return {k: cast.get(id(v), v) for k, v in features.items()}


def _channels_last(gradient: Tensor | None) -> Tensor | None:
    """None: what a compiled loss leaves out."""
    return None if gradient is None else gradient.contiguous(memory_format=torch.channels_last)


def with_ordered_gradients(features: Features) -> Features:
    """The same features; the gradient of a map in channels_last memory arrives in that order, too.

    Some losses return it in another order (adaptive pooling does), in which a CPU's batch norm takes ten times as long.
    """
    for x in {id(v): v for v in features.values() if v.ndim == 4 and v.requires_grad}.values():
        if x.is_contiguous(memory_format=torch.channels_last):
            x.register_hook(_channels_last)
    return features


@contextmanager
def thawed(params: Sequence[nn.Parameter]) -> Iterator[None]:
    for p in params:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(False)


@dataclass(frozen=True)
class Computed:
    """loss: weighted sum of the main phase, with its graph. terms: unweighted and detached, of every phase.

    parts: the same loss split by the method's parts(), None for a part without terms at the moment; () without parts.
    """

    loss: Tensor
    terms: Terms
    s: Features
    t: Features
    parts: tuple[Tensor | None, ...] = ()


class Objective:
    """The loss of a method, and its isolated phases.

    Freezes the parameters that the method does not train. forward: computes the features (`trained` or a wrapper of
    it), called as forward(batch size, inputs, teacher's features); loss_terms: computes the terms, called as
    loss_terms(batch size, s, t, batch, progress, weights). optimizers: phase -> optimiser, of the isolated phases.
    """

    def __init__(self, trained: Trained, teacher: TeacherSource | None, taps: Sequence[str]):
        self.trained, self.method, self.teacher, self.taps = trained, trained.method, teacher, taps
        student, peer = trained.student, trained.peer
        for p in (*self.method.unused(student), *student.idle(), *(peer.idle() if peer is not None else ())):
            p.requires_grad_(False)
        # a reused head, a frozen backbone: without trainable parameters, so its batch-norm statistics are frozen too
        self._frozen = [
            m
            for m in trained.modules()
            if any(True for _ in m.parameters()) and not any(p.requires_grad for p in m.parameters())
        ]
        self.isolated = self.method.extra_phases()
        for phase in self.isolated:
            for p in phase.params():
                p.requires_grad_(False)  # DDP skips parameters that are frozen when it wraps
        self.params = [p for p in trained.parameters() if p.requires_grad]
        self.optimizers: dict[str, Optimizer] = {}
        self.forward: Callable[..., tuple[Features, Features]] = lambda size, inputs, t: trained(inputs, t)
        self.loss_terms: Callable[..., Terms] = lambda size, *args: self.main_terms(*args)

    def train(self) -> None:
        """Training mode, except for frozen modules."""
        self.trained.train()
        for module in self._frozen:
            module.eval()

    def optimize_phases(self, make: Callable[[Sequence[nn.Parameter], float], Optimizer]) -> None:
        """make: (parameters, factor of the learning rate) -> optimiser of an isolated phase."""
        self.optimizers = {phase.name: make(phase.params(), phase.lr_scale) for phase in self.isolated}

    @torch.no_grad()
    def prepare_teacher(self, batches: Callable[[], Iterable[Batch]]) -> None:
        """batches(): one pass over the training set; called once for every method that learns from the teacher."""
        if self.teacher is None:
            return
        features = self.teacher.features
        self.method.prepare_teacher(lambda: ((full_precision(features(b, self.taps)), b) for b in batches()))

    def main_terms(
        self, s: Features, t: Features, batch: Batch, progress: Progress, weights: Mapping[str, float]
    ) -> Terms:
        """weights: the present ones; a compiled graph must not compute them, as it would keep those of one epoch."""
        own = self.method.terms(*self.method.frames_as_views(s, t, batch), progress)
        return {**self.method.common_terms(s, t, batch, weights), **own}

    def features(self, batch: Batch) -> tuple[Features, Features]:
        """Features of student and teacher, projected and in float32."""
        t = self.teacher.features(batch, self.taps) if self.teacher is not None else {}
        s, t = self.forward(len(batch), batch.inputs, t)
        return with_ordered_gradients(full_precision(s)), full_precision(t)

    def __call__(self, batch: Batch, progress: Progress, weights: Mapping[str, float]) -> Computed:
        """The loss of one (micro-)batch prepared by the method; steps the isolated phases."""
        s, t = self.features(batch)
        with torch.autocast(batch.target.device.type, enabled=False):
            seen = self._isolated_terms(s, t, batch, progress, weights)
            terms = self.loss_terms(len(batch), s, t, batch, progress, weights)
            parts = parts_of(terms, weights, self.method.parts())
        return Computed(weighted_sum(terms, weights), seen | detached(terms), s, t, parts)

    def _isolated_terms(
        self, s: Features, t: Features, batch: Batch, progress: Progress, weights: Mapping[str, float]
    ) -> Terms:
        seen = Terms()
        for phase in self.isolated:
            if progress.global_step % phase.every:
                continue
            optimizer, params = self.optimizers[phase.name], phase.params()
            optimizer.zero_grad(set_to_none=True)
            with thawed(params):
                terms = phase.terms(detached(s), detached(t), batch, progress)
                weighted_sum(terms, weights).backward()
                averaged_over_ranks([p.grad for p in params])  # in place; DDP leaves these parameters out
                optimizer.step()
            seen.update(detached(terms))
        return seen

    @torch.no_grad()
    def after_step(self, computed: Sequence[tuple[Features, Features, Batch]]) -> None:
        for s, t, batch in computed:
            self.method.after_step(s, t, batch)
