"""Moving average of the deployed network (Polyak & Juditsky, 1992), evaluated and saved instead of the trained
weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from core.option import RESULT, Config, at_least, option, share


@dataclass(frozen=True)
class EmaConfig(Config):
    heading = "moving average of the weights"

    ema: float = option(
        0.0,
        "decay of a moving average of the weights, which is evaluated and saved in their place; 0: none",
        check=share,
        role=RESULT,
    )
    ema_every: int = option(1, "steps between updates of the average", check=at_least(1), role=RESULT)

    def __bool__(self) -> bool:
        return self.ema > 0


class Average:
    """decay * average + (1 - decay) * value after every n-th step, by torch's own averaging.

    Batch-norm statistics are included, as in torchvision's recipes; integers are copied.

    modules: their parameters and buffers are averaged.
    """

    def __init__(self, modules: Sequence[nn.Module], cfg: EmaConfig):
        values = [v for m in modules for v in (*m.parameters(), *m.buffers())]
        self.live = list({id(v): v.detach() for v in values}.values())
        self.average = [v.clone() for v in self.live]
        self.every, self.steps = cfg.ema_every, 0
        self._update = get_ema_multi_avg_fn(cfg.ema)

    def update(self) -> None:
        """Update; call it after an optimiser's step."""
        self.steps += 1
        if self.steps % self.every:
            return
        pairs = list(zip(self.average, self.live, strict=True))
        floating = [(a, v) for a, v in pairs if a.is_floating_point()]
        if self.steps == self.every:  # the average starts with these values, not with the initialisation
            torch._foreach_copy_([a for a, _ in floating], [v for _, v in floating])
        else:
            self._update([a for a, _ in floating], [v for _, v in floating], self.steps // self.every)
        for a, v in pairs:
            if not a.is_floating_point():
                a.copy_(v)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside the context, the modules hold the average; before the first update, their own weights."""
        if self.steps < self.every:
            yield
            return
        trained = [v.clone() for v in self.live]
        torch._foreach_copy_(self.live, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(self.live, trained)

    def state_dict(self) -> dict[str, Any]:
        return {"average": list(self.average), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        for mine, value in zip(self.average, state["average"], strict=True):
            mine.copy_(value)
