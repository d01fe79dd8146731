"""Teacher sources: whoever answers a step's question for the teacher's features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from helper.cache import CachedTeacher
from helper.protocols import Batch, Features, TeacherSource, UserError
from helper.taps import TappedNet


class LiveTeacher:
    """A frozen network, run on every batch in eval mode without gradient.

    no_grad and not inference_mode: methods project teacher features with trainable layers, which keep them for
    backward.
    """

    def __init__(self, net: TappedNet, autocast: torch.dtype | None = None):
        self.net, self.autocast = net.eval().requires_grad_(False), autocast
        self.spec = net.spec
        self.device = next(net.parameters()).device

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        assert not self.net.model.training, "the teacher was taken to training mode"
        inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        with torch.no_grad(), torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            features = self.net(inputs)
        return {k: features[k] for k in ("logits", *taps)}


class EnsembleTeacher:
    """Several frozen networks as one: logits = log of the weighted mean of their probabilities (at temperature 1).

    With one teacher that is the teacher itself, as a softmax ignores a constant. Feature maps of several networks have
    no mean, so methods that read them are refused.
    weights: one per teacher, normalised to sum 1; None weighs all alike.
    """

    def __init__(self, sources: Sequence[TeacherSource], weights: Sequence[float] | None = None):
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources):
            raise UserError(f"--teacher_weight has {len(weights)} values for {len(sources)} teachers")
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise UserError("--teacher_weight takes finite weights of at least 0, one of them above 0")
        self.sources, self.weights = list(sources), [w / sum(weights) for w in weights]
        self.spec = sources[0].spec

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        assert not taps, "an ensemble answers for logits alone"
        parts = [
            source.features(batch, ())["logits"].float().log_softmax(1) + math.log(weight)
            for source, weight in zip(self.sources, self.weights, strict=True)
            if weight > 0
        ]
        return {"logits": torch.stack(parts).logsumexp(0)}


class SharedTeacher:
    """One forward per batch for several students: remembers the last batch, by identity, with all taps anybody wants.

    taps: the union over the students. cache: the source, if it is one. A student whose method changes the batch asks
    with another batch, and pays for it.
    """

    def __init__(self, source: TeacherSource, taps: Sequence[str], cache: CachedTeacher | None = None):
        self.cache = cache
        self.source, self.spec, self.taps = source, source.spec, tuple(dict.fromkeys(taps))
        self._batch: Batch | None = None
        self._features: Features = {}

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        missing = set(taps) - set(self.taps)
        assert not missing, f"taps {sorted(missing)} were not announced to the shared teacher"
        if self._batch is not batch:
            self._batch, self._features = batch, self.source.features(batch, self.taps)
        return {k: self._features[k] for k in ("logits", *taps)}
