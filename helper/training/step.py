"""One training step: networks + method + optimisers. It names no method, model or data set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.protocols import Batch, Features, Gradients, Needs, Progress, TeacherSource, Terms
from core.taps import TappedNet
from distiller_zoo._math import detached
from distiller_zoo._task import Computed, Deployed, Objective, Trained, added, averaged_over_ranks, gradients_of
from distiller_zoo.base import Distiller
from helper.machine import distributed
from helper.machine.kernels import PLAIN, Kernels, maybe_compiled
from helper.training.ema import Average, EmaConfig
from helper.training.fake_quant import QuantizeConfig, make_rounding
from helper.training.optim import MakeOptimizer, OptimConfig, PartedSGD


@dataclass(frozen=True)
class StepSetup:
    """Settings of a step, for all methods.

    autocast: dtype of the forward pass; None: float32. accumulate: micro-batches per optimiser step (relational
    losses then use a micro-batch). quantize: whether the student's layers round in training. wrap: wraps the trained
    modules in DDP. kernels: the compiled parts.
    """

    make_optimizer: MakeOptimizer
    device: torch.device = torch.device("cpu")
    autocast: torch.dtype | None = None
    accumulate: int = 1
    kernels: Kernels = PLAIN
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    wrap: Callable[[nn.Module], nn.Module] = distributed.ddp


@dataclass(frozen=True)
class StepResult:
    """Loss, terms and predictions of a step."""

    loss: Tensor  # weighted sum of the main phase, mean over the batch
    terms: Terms  # unweighted, of every phase
    logits: Tensor  # [B, K] of view 0, as deployed, for samples with a label
    target: Tensor  # [B]


class DistillStep:
    """Calling it with a batch trains one step.

    teacher: source of a frozen teacher's features; peer: the network of an online method; at most one of them.
    full: batch size to compile for.
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
        self.rng = rng or torch.Generator(setup.device)
        deployed = [m for m in (student.model, peer, method.deployment()) if m is not None]
        if setup.quantize:
            make_rounding(deployed)
        self.trained = Trained(student, peer, method)
        self.objective = Objective(self.trained, teacher, (needs or Needs()).teacher)
        self.main_params = self.objective.params
        self.device = next(student.parameters()).device
        self.root = setup.wrap(self.trained)
        # the modules themselves are unchanged: state dicts, evaluation and DDP need no knowledge of a compiler
        self._compiled_root = maybe_compiled("student", self.root, kernels, full)
        self.objective.forward = self._forward
        plain = PLAIN if method.follows_time else kernels
        self.objective.loss_terms = maybe_compiled("loss", self.objective.main_terms, plain, full)
        self.objective.optimize_phases(setup.make_optimizer)
        main, self.parts = setup.make_optimizer(self.main_params, 1.0), method.parts()
        if any(part.momentum is not None for part in self.parts):
            main = PartedSGD(main, self.parts, method.name)
        if self.parts:
            torch._functorch.config.donated_buffer = False  # compiled graphs are differentiated several times
        self.optimizers = self.objective.optimizers | {"main": main}
        self.ema = Average(deployed, setup.ema) if setup.ema else None

    def _forward(self, size: int, inputs: Mapping[str, Tensor], t: Features) -> tuple[Features, Features]:
        with torch.autocast(self.device.type, self.setup.autocast, enabled=self.setup.autocast is not None):
            return self._compiled_root(size, inputs, t)

    def train(self) -> None:
        """Training mode, except for frozen modules. Called once per epoch."""
        self.objective.train()

    def set_lr(self, lr: float) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)

    def __call__(self, batch: Batch, progress: Progress) -> StepResult:
        if self.setup.kernels.graphs:  # they may overwrite the outputs of the last step
            torch.compiler.cudagraph_mark_step_begin()
        batch = self.method.prepare(batch)
        weights = self.method.weights(progress)
        micro = batch.split(self.setup.accumulate)
        main = self.optimizers["main"]
        main.zero_grad(set_to_none=True)
        results, kept = [], []
        shares = [len(part) / len(batch) for part in micro]
        gradients: list[Gradients] = []  # of the parts
        for i, (part, share) in enumerate(zip(micro, shares, strict=True)):
            last = i == len(micro) - 1
            with self._no_sync(not last or bool(self.parts)):
                done = self.objective(part, progress, weights)
                if self.parts:
                    gradients = self._add_parts(gradients, done, share)
                else:
                    (done.loss if share == 1 else done.loss * share).backward()
            logits = done.s["logits"].detach()[:: part.views][: part.labelled]
            results.append(StepResult(done.loss.detach(), done.terms, logits, part.target[: part.labelled]))
            if self.method.wants_after_step:  # otherwise the maps of all micro-batches would be kept
                kept.append((detached(done.s), detached(done.t), part))
        if self.parts:
            self._step_parts(gradients)
        else:
            self.setup.optim.clip(self.main_params)
            main.step()
        if self.ema is not None:
            self.ema.update()
        self.objective.after_step(kept)
        return results[0] if len(results) == 1 else _joined(results, shares)

    def _add_parts(self, gradients: list[Gradients], done: Computed, share: float) -> list[Gradients]:
        """Gradients of the previous micro-batches plus those of this one."""
        last = max(i for i, loss in enumerate(done.parts) if loss is not None)
        own = [gradients_of(loss, self.main_params, share, i == last) for i, loss in enumerate(done.parts)]
        return [added(*pair) for pair in zip(gradients, own, strict=True)] if gradients else own

    def _step_parts(self, gradients: list[Gradients]) -> None:
        """Average gradients over processes, let the method change them, and step; each part is clipped separately."""
        main = self.optimizers["main"]
        gradients = self.method.join_gradients([averaged_over_ranks(g) for g in gradients])
        if isinstance(main, PartedSGD):
            main.step_parts(self.main_params, [self.setup.optim.clipped(g) for g in gradients])
            return
        for p, *own in zip(self.main_params, *gradients, strict=True):
            there = [g for g in own if g is not None]
            p.grad = torch.stack(there).sum(0) if there else None
        self.setup.optim.clip(self.main_params)
        main.step()

    def _no_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        return self.root.no_sync() if wanted and isinstance(self.root, DistributedDataParallel) else nullcontext()

    def averaged(self) -> AbstractContextManager[Any]:
        """Inside the context, the deployed modules hold their moving average, if there is one."""
        return nullcontext() if self.ema is None else self.ema.shown()

    def deployed(self, bare: bool = False) -> Deployed:
        return Deployed(self.student, self.method, self.peer, bare)

    def deployed_state(self) -> dict[str, Any]:
        """The deployed modules' state for a checkpoint; a copy of the moving average, if there is one."""
        with self.averaged():
            state: dict[str, Any] = {"model": self.student.model.state_dict()}
            if (deployment := self.method.deployment()) is not None:
                state |= deployment.entries()
            if self.peer is not None:
                state["peer"] = self.peer.model.state_dict()
            return state if self.ema is None else copy.deepcopy(state)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "trained": self.trained.state_dict(),
            "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
            "rng": self.rng.get_state(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trained.load_state_dict(state["trained"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.rng.set_state(state["rng"].cpu())
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def _joined(results: Sequence[StepResult], shares: Sequence[float]) -> StepResult:
    """shares: of the samples of the batch; those of the labels are unknown where no sample has one."""
    terms = {k: sum_of(w * r.terms[k] for w, r in zip(shares, results, strict=True)) for k in results[-1].terms}
    loss = sum_of(w * r.loss for w, r in zip(shares, results, strict=True))
    return StepResult(loss, terms, torch.cat([r.logits for r in results]), torch.cat([r.target for r in results]))


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, on their device."""
    return torch.stack(list(parts)).sum()
