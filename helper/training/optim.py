"""Optimisers and parameter groups."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from core.option import RESULT, Config, not_negative, option, share
from core.packages import needed
from core.protocols import Gradients, Part, UserError

MakeOptimizer = Callable[[Sequence[nn.Parameter], float], Optimizer]  # parameters, lr scale
OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw", "rmsprop")
TIMM = "timm:"


def _known(flag: str, value: str) -> None:
    if value not in OPTIMIZERS and not value.startswith(TIMM):
        raise UserError(f"{flag} {value} is unknown: choose {', '.join(OPTIMIZERS)}, or timm:NAME, such as timm:lamb")


@dataclass(frozen=True)
class OptimConfig(Config):
    heading = "optimisation"

    optimizer: str = option(
        "sgd",
        f"optimizer: {', '.join(OPTIMIZERS)}, or one of timm's, such as timm:lamb",
        check=_known,
        role=RESULT,
        metavar="NAME",
    )
    momentum: float = option(0.9, "momentum of SGD", check=share, role=RESULT)
    nesterov: bool = option(False, "short for --optimizer nesterov, which HSAKD and DPCD use on CIFAR", role=RESULT)
    weight_decay: float = option(
        5e-4,
        "weight decay of all parameters, including batch norm and biases (default 0.0005; depends on the data set)",
        check=not_negative,
        role=RESULT,
    )
    norm_weight_decay: float | None = option(
        None,
        "weight decay of normalisation layers and biases (default: --weight_decay)",
        check=not_negative,
        role=RESULT,
    )
    clip_grad: float = option(
        0.0,
        "largest gradient norm of the main loss, or of each of its parts; 0: no limit",
        check=not_negative,
        role=RESULT,
    )
    param_groups: str = option(
        "one",
        "tsm: biases at twice the rate, no decay on biases and batch norm; tsm_fc5: also the classifier at five times "
        "the rate",
        choices=("one", "tsm", "tsm_fc5"),
        role=RESULT,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.optimizer not in ("sgd", "nesterov"):
            raise UserError(
                f"--nesterov is a momentum of SGD, but --optimizer {self.optimizer} has none: leave one of them out"
            )
        if self.nesterov and not self.momentum:
            raise UserError("--nesterov needs a --momentum above 0")
        if self.param_groups != "one" and self.norm_weight_decay is not None:
            raise UserError(
                f"--param_groups {self.param_groups} sets the decay of batch norm and biases itself: leave out "
                "--norm_weight_decay"
            )

    def clip(self, params: Sequence[nn.Parameter]) -> None:
        """Clip the gradients of `params` to the largest norm, if it is set."""
        if self.clip_grad:
            nn.utils.clip_grad_norm_(params, self.clip_grad)

    def clipped(self, gradients: Gradients) -> Gradients:
        """Gradients, scaled down to the largest norm if they exceed it."""
        there = [g for g in gradients if g is not None]
        if self.clip_grad and there:
            norm = nn.utils.get_total_norm(there)
            torch._foreach_mul_(there, (self.clip_grad / (norm + 1e-6)).clamp(max=1))
        return gradients

    @property
    def advice(self) -> str:
        """A flag that may help if training diverges, "" if it is already set."""
        return "" if self.clip_grad else ", --clip_grad 5"


def optimizer(cfg: OptimConfig, lr: float, fused: bool = True) -> MakeOptimizer:
    """One of OPTIMIZERS from torch, rmsprop with torchvision's alpha 0.9 and eps 0.0316; or one of timm's.

    norm_weight_decay: of parameters with one dimension (normalisation layers and biases); None: as all others.
    fused: as one kernel, if torch has one; otherwise torch's default.
    """
    fast = fused or None
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=fast),
        "nesterov": partial(torch.optim.SGD, momentum=cfg.momentum, nesterov=True, fused=fast),
        "adam": partial(torch.optim.Adam, fused=fast),
        "adamw": partial(torch.optim.AdamW, fused=fast),
        "rmsprop": partial(torch.optim.RMSprop, momentum=cfg.momentum, alpha=0.9, eps=0.0316),
    }
    kind = _of_timm(cfg) if cfg.optimizer.startswith(TIMM) else kinds[cfg.optimizer]
    return lambda params, scale: kind(_groups(cfg, params, scale), lr=lr * scale, weight_decay=cfg.weight_decay)


def _groups(cfg: OptimConfig, params: Sequence[nn.Parameter], scale: float) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [{"params": list(params), "lr_scale": scale}]
    if cfg.norm_weight_decay is not None:
        flat = [p for p in params if p.ndim <= 1]
        groups[0]["params"] = [p for p in params if p.ndim > 1]
        groups.append({"params": flat, "lr_scale": scale, "weight_decay": cfg.norm_weight_decay})
    return groups


def _of_timm(cfg: OptimConfig) -> Callable[..., torch.optim.Optimizer]:
    """An optimiser of timm's factory; UserError if there is none of that name."""
    name = cfg.optimizer.removeprefix(TIMM)
    timm = needed("timm.optim", f"--optimizer {cfg.optimizer}")
    known = [str(one) for one in timm.list_optimizers()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known[:8]
        raise UserError(f"--optimizer {cfg.optimizer}: timm has no optimizer {name}: try {', '.join(near)}")
    return partial(timm.create_optimizer_v2, opt=name, momentum=cfg.momentum)


class PartedSGD(Optimizer):
    """SGD with a momentum buffer for every part of the loss (DOT, DeepKD); parts are applied in order.

    v = (momentum + the part's) * v + g, p = p - lr * v; the first v is g. The part that decays adds weight_decay * p to
    its g. A parameter that only one part reaches has the plain momentum and decay; if that part is not the one that
    decays, its first v is g without decay, as published. sgd: the source of groups and settings.
    """

    def __init__(self, sgd: Optimizer, parts: Sequence[Part], method: str):
        if not isinstance(sgd, torch.optim.SGD) or sgd.defaults["nesterov"]:
            raise UserError(
                f"{method} has a momentum for every part of its loss, which only plain SGD supports: use --optimizer "
                "sgd"
            )
        known = ("params", "lr", "lr_scale", "weight_decay", "momentum")
        defaults = {k: sgd.defaults[k] for k in ("lr", "weight_decay", "momentum")}
        super().__init__([{k: g[k] for k in known if k in g} for g in sgd.param_groups], defaults)
        self.parts = parts
        for part in parts:
            if not 0 <= (momentum := defaults["momentum"] + (part.momentum or 0.0)) < 1:
                raise UserError(
                    f"{method}: the {part.name} part has momentum {momentum:g} (that of the run plus {part.momentum:g})"
                    ", which must be at least 0 and less than 1: choose another --momentum"
                )

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise RuntimeError("the gradients of the parts are passed to step_parts()")

    @torch.no_grad()
    def step_parts(self, params: Sequence[nn.Parameter], gradients: Sequence[Gradients]) -> None:
        """gradients: of every part, each of all params."""
        by_part: list[dict[Tensor, Tensor | None]] = [dict(zip(params, own, strict=True)) for own in gradients]
        for group in self.param_groups:
            for part, own in zip(self.parts, by_part, strict=True):
                alike: dict[tuple[bool, bool], list[Tensor]] = {}
                for p in group["params"]:
                    if own[p] is not None:
                        alone = sum(other[p] is not None for other in by_part) == 1
                        alike.setdefault((alone, key_of(part) not in self.state[p]), []).append(p)
                for (alone, first), some in alike.items():
                    self._update(group, part, some, [own[p] for p in some], alone, first)

    def _update(
        self, group: Mapping[str, Any], part: Part, params: list[Tensor], g: Any, alone: bool, first: bool
    ) -> None:
        if part.decays or (alone and not first):
            g = torch._foreach_add(g, params, alpha=group["weight_decay"])
        if first:
            for p, value in zip(params, g, strict=True):
                self.state[p][key_of(part)] = value.clone()
        buffers = [self.state[p][key_of(part)] for p in params]
        if not first:
            torch._foreach_mul_(buffers, group["momentum"] + (0.0 if alone else part.momentum or 0.0))
            torch._foreach_add_(buffers, g)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def key_of(part: Part) -> str:
    """The key of a part's momentum buffer in the optimiser's state."""
    return f"momentum_{part.name}"


Multipliers = tuple[float, float]  # factors of learning rate and weight decay


def tsm_multipliers(model: nn.Module, head: nn.Module, head_at_five: bool) -> dict[Tensor, Multipliers]:
    """TSM's rule (Lin et al., ICCV 2019, published code): biases of convolutions and linear layers at twice the rate,
    without decay; batch norm without decay; the classifier at five times (its bias ten times) if wanted."""
    found: dict[Tensor, Multipliers] = {}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        if isinstance(module, _BatchNorm | nn.GroupNorm):
            found |= dict.fromkeys(own.values(), (1.0, 0.0))
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            times = 5.0 if head_at_five and module is head else 1.0
            found[module.weight] = (times, 1.0)
            if module.bias is not None:
                found[module.bias] = (2.0 * times, 0.0)
        else:
            raise UserError(
                f"--param_groups tsm supports convolutions, linear layers and batch norm, but {path} is a "
                f"{type(module).__name__}: use --param_groups one"
            )
    return found


def regroup(optimizer: Optimizer, multipliers: Mapping[Tensor, Multipliers]) -> None:
    """Split the optimiser's only group by multipliers; parameters that they do not name (a method's own layers) keep
    the plain settings."""
    (whole,) = optimizer.param_groups
    parts: dict[Multipliers, list[nn.Parameter]] = {}
    for p in whole["params"]:
        parts.setdefault(multipliers.get(p, (1.0, 1.0)), []).append(p)
    optimizer.param_groups.clear()
    for (rate, decay), params in parts.items():
        optimizer.add_param_group(
            {
                **whole,
                "params": params,
                "lr": whole["lr"] * rate,
                "lr_scale": whole.get("lr_scale", 1.0) * rate,
                "weight_decay": whole["weight_decay"] * decay,
            }
        )
