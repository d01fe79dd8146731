"""One training step: networks + method + optimisers. Knows no method, model or data set by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.protocols import Batch, Features, Needs, Phase, Progress, TeacherSource, Terms
from core.taps import TappedNet
from distiller_zoo._math import detached, weighted_sum
from distiller_zoo.base import Deployment, Distiller
from helper.machine import distributed
from helper.machine.kernels import PLAIN, Kernels, begin_step, maybe_compiled
from helper.training.ema import Average, EmaConfig
from helper.training.optim import MakeOptimizer, OptimConfig


@dataclass(frozen=True)
class StepSetup:
    """How a step is computed, whatever the method.

    autocast: dtype of the forward pass, None for float32. accumulate: micro-batches per optimiser step (relational
    losses then see a micro-batch). wrap: puts what trains into DDP. kernels: what is compiled.
    """

    make_optimizer: MakeOptimizer
    device: torch.device = torch.device("cpu")
    autocast: torch.dtype | None = None
    accumulate: int = 1
    kernels: Kernels = PLAIN
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    wrap: Callable[[nn.Module], nn.Module] = distributed.ddp


def average_gradients(params: Sequence[nn.Parameter]) -> None:
    """Mean over ranks, for parameters that live outside the DDP root (isolated phases)."""
    if dist.is_initialized():
        for p in params:
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()


def full_precision(features: Features) -> Features:
    """Losses are computed in float32, whatever autocast made of the forward pass."""
    low = (torch.bfloat16, torch.float16)
    cast = {id(v): v.float() for v in features.values() if v.dtype in low}  # one tensor may have several names
    return {k: cast.get(id(v), v) for k, v in features.items()}


@contextmanager
def thawed(params: Sequence[nn.Parameter]) -> Iterator[None]:
    for p in params:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(False)


class Trained(nn.Module):
    """Everything that trains, under one root: this is what DDP and torch.compile wrap."""

    def __init__(self, student: TappedNet, peer: TappedNet | None, method: Distiller):
        super().__init__()
        self.student, self.peer, self.method = student, peer, method

    def forward(self, inputs: Mapping[str, Tensor], t: Features) -> tuple[Features, Features]:
        if self.peer is not None:
            t = self.peer(inputs)
        return self.method.connect(self.method.deploy(self.student(inputs)), t)


class Deployed(nn.Module):
    """What is evaluated, averaged, exported: the student and whatever of the method survives training.

    bare: the student's logits alone, without a peer and without heads that are reported.
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


def entries_of(method: Distiller) -> dict[str, dict[str, Tensor]]:
    """Checkpoint entry -> state, of what a method deploys."""
    return {} if (deployment := method.deployment()) is None else deployment.entries()


@dataclass(frozen=True)
class StepResult:
    loss: Tensor  # weighted sum of the main phase, mean over the batch
    terms: Terms  # unweighted, of every phase
    logits: Tensor  # [B, K] of view 0, as deployed
    target: Tensor  # [B]


class DistillStep:
    """Call it with a batch to train one step.

    teacher: answers for a frozen teacher; peer: the network of an online method; at most one of them.
    full: samples of the batches that parts are compiled for.
    """

    def __init__(
        self,
        student: TappedNet,
        teacher: TeacherSource | None,
        method: Distiller,
        setup: StepSetup,
        *,
        needs: Needs | None = None,
        peer: TappedNet | None = None,
        rng: torch.Generator | None = None,
        full: int | None = None,
    ):
        self.setup, kernels = setup, setup.kernels
        self.student, self.teacher, self.peer, self.method = student, teacher, peer, method
        self.taps = (needs or Needs()).teacher
        self.rng = rng
        self.trained = Trained(student, peer, method)

        for p in (*method.unused(student), *student.idle(), *(peer.idle() if peer is not None else ())):
            p.requires_grad_(False)
        # a reused head, a frozen backbone: no trainable parameter, so its batch-norm statistics stay too
        self._frozen = [
            m
            for m in self.trained.modules()
            if any(True for _ in m.parameters()) and not any(p.requires_grad for p in m.parameters())
        ]
        extra = method.extra_phases()
        for phase in extra:
            for p in phase.params():
                p.requires_grad_(False)  # DDP skips what is frozen when it wraps
        main = [p for p in self.trained.parameters() if p.requires_grad]
        self.device = next(student.parameters()).device
        self.run = setup.wrap(self.trained)
        # the modules themselves stay as they are: state dicts, evaluation and DDP know nothing of a compiler
        self._features = maybe_compiled("student", self.run, kernels, full)
        self._terms = maybe_compiled("loss", self._main_terms, PLAIN if method.follows_time else kernels, full)
        self.phases = (*extra, Phase("main", lambda: main, self._main_terms, isolated=False))
        self.optimizers = {
            phase.name: phase.optimizer(phase.params())
            if phase.optimizer
            else setup.make_optimizer(phase.params(), phase.lr_scale)
            for phase in self.phases
        }
        self.main_params = main
        averaged = [m for m in (student.model, peer, method.deployment()) if m is not None]
        self.ema = Average(averaged, setup.ema) if setup.ema else None
        self._scheduled = [p.name for p in self.phases if p.optimizer is None]

    def _main_terms(
        self, s: Features, t: Features, batch: Batch, progress: Progress, weights: Mapping[str, float] | None = None
    ) -> Terms:
        """weights: of that moment, which a compiled graph must not work out: it would be of this epoch alone."""
        weights = self.method.weights(progress) if weights is None else weights
        own = self.method.terms(*self.method.rows(s, t, batch), progress)
        return {**self.method.common_terms(s, t, batch, weights), **own}

    def train(self) -> None:
        """Training mode, except for what never trains. Once an epoch."""
        self.trained.train()
        for module in self._frozen:
            module.eval()

    def set_lr(self, lr: float) -> None:
        for name in self._scheduled:
            for group in self.optimizers[name].param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)

    def forward(self, batch: Batch) -> tuple[Features, Features]:
        """Features of student and teacher, projected and in float32."""
        t = self.teacher.features(batch, self.taps) if self.teacher is not None else {}
        with torch.autocast(self.device.type, self.setup.autocast, enabled=self.setup.autocast is not None):
            s, t = self._features(len(batch), batch.inputs, t)
        return full_precision(s), full_precision(t)

    def __call__(self, batch: Batch, progress: Progress) -> StepResult:
        begin_step(self.setup.kernels)
        batch = self.method.prepare(batch)
        weights = self.method.weights(progress)
        micro = batch.split(self.setup.accumulate)
        main = self.optimizers["main"]
        main.zero_grad(set_to_none=True)
        results, kept = [], []
        for i, part in enumerate(micro):
            last = i == len(micro) - 1
            with self._no_sync(not last):
                s, t = self.forward(part)
                seen = self._isolated_phases(s, t, part, progress, weights)
                terms = self._terms(len(part), s, t, part, progress, weights)
                loss = weighted_sum(terms, weights)
                (loss if len(micro) == 1 else loss * (len(part) / len(batch))).backward()
            seen.update(detached(terms))
            results.append(StepResult(loss.detach(), seen, s["logits"].detach()[:: part.views], part.target))
            if self.method.looks_back:  # or the maps of all micro-batches would stay
                kept.append((detached(s), detached(t), part))
        self.setup.optim.clip(self.main_params)
        main.step()
        if self.ema is not None:
            self.ema.update()
        with torch.no_grad():
            for s, t, part in kept:
                self.method.after_backward(s, t, part)
        return results[0] if len(results) == 1 else _joined(results)

    def _isolated_phases(
        self, s: Features, t: Features, batch: Batch, progress: Progress, weights: Mapping[str, float]
    ) -> Terms:
        seen = Terms()
        for phase in self.phases[:-1]:
            if progress.global_step % phase.every:
                continue
            optimizer, params = self.optimizers[phase.name], phase.params()
            optimizer.zero_grad(set_to_none=True)
            with thawed(params):
                terms = phase.terms(detached(s), detached(t), batch, progress)
                weighted_sum(terms, weights).backward()
                average_gradients(params)
                optimizer.step()
            seen.update(detached(terms))
        return seen

    def _no_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        return self.run.no_sync() if wanted and isinstance(self.run, DistributedDataParallel) else nullcontext()

    def averaged(self) -> AbstractContextManager[Any]:
        """Inside, what is deployed holds its moving average, if there is one."""
        return nullcontext() if self.ema is None else self.ema.shown()

    def deployed(self, bare: bool = False) -> Deployed:
        return Deployed(self.student, self.method, self.peer, bare)

    def deployed_state(self) -> dict[str, Any]:
        """What a checkpoint holds of what is deployed; a copy of its moving average, if there is one."""
        with self.averaged():
            state = {"model": self.student.model.state_dict(), **entries_of(self.method)}
            return state if self.ema is None else copy.deepcopy(state)

    def rng_state(self) -> Tensor | None:
        return None if self.rng is None else self.rng.get_state()

    def set_rng(self, state: Tensor | None) -> None:
        if self.rng is not None and state is not None:
            self.rng.set_state(state.cpu())

    def seed_rng(self, seed: int) -> None:
        if self.rng is not None:
            self.rng.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "trained": self.trained.state_dict(),
            "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
        }
        if self.rng is not None:
            state["rng"] = self.rng.get_state()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trained.load_state_dict(state["trained"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.rng is not None:
            self.rng.set_state(state["rng"].cpu())
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def _joined(results: Sequence[StepResult]) -> StepResult:
    sizes = [len(r.target) for r in results]
    share = [n / sum(sizes) for n in sizes]
    terms = {k: sum_of(w * r.terms[k] for w, r in zip(share, results, strict=True)) for k in results[-1].terms}
    loss = sum_of(w * r.loss for w, r in zip(share, results, strict=True))
    return StepResult(loss, terms, torch.cat([r.logits for r in results]), torch.cat([r.target for r in results]))


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum()
