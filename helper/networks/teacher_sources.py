"""Sources of teacher features: a live network, an ensemble, one shared between students."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.option import RESULT, Around, Config, at_least, option
from core.protocols import Batch, Features, TeacherSource, UserError
from core.taps import TappedNet
from helper.machine.kernels import PLAIN, Kernels, folded, maybe_compiled, with_cast_weights

ABSURD = 1e6  # of a logit


@dataclass(frozen=True)
class TeacherConfig(Config):
    heading = "teacher"

    path_t: list[str] | None = option(
        None,
        "checkpoint of the teacher, folder of its run, or torchvision:NAME, timm:NAME, hf_hub:USER/NAME for published "
        "weights; several form an ensemble; FILE@ema reads the averaged weights of a file that holds both, FILE@net2 "
        "the second of two peers",
        short="--teacher",
        metavar="FILE",
    )
    model_t: str | None = option(
        None, "teacher network, if neither the checkpoint nor its path names it", metavar="NAME"
    )
    teacher_weight: list[float] | None = option(
        None, "weight of each teacher's probabilities in an ensemble (default: equal)", role=RESULT
    )
    teacher_image_size: int | None = option(
        None,
        "size in pixels to which the teacher's images are resized (default: the student's size)",
        check=at_least(1),
        role=RESULT,
    )
    teacher_probe: str | None = option(
        None,
        "fit a classifier to the teacher's frozen features of the training set, replacing its own: "
        "linear (logistic regression) or means (the nearest class mean)",
        choices=("linear", "means"),
        role=RESULT,
    )
    mean_t: list[float] | None = option(
        None,
        "mean of the pixels (in [0, 1]) in the teacher's training, one value or one per channel (default: the "
        "network's)",
        role=RESULT,
    )
    std_t: list[float] | None = option(
        None,
        "standard deviation of these pixels; if the teacher reads pixels in [-1, 1]: mean 0.5, std 0.5; in 0..255: "
        "mean 0, std 0.003922",
        role=RESULT,
    )
    match_classes: bool = option(
        False, "reorder the teacher's logits to the data set's order of classes, if both have the same classes"
    )
    skip_validation: bool = option(False, "do not evaluate the teacher before training")
    fold_teacher: bool = option(False, "fold the teacher's batch norm into its convolutions", role=RESULT)
    teacher_dropout: bool = option(
        False,
        "keep the teacher's dropout and drop path active, as MMRazor does (batch norm is in eval mode); students "
        "trained together share what is drawn, so their numbers are not those of separate runs",
        role=RESULT,
    )

    def idle(self, around: Around) -> dict[str, str]:
        why = {} if len(self.path_t or ()) > 1 else {"teacher_weight": "there is no ensemble to weigh"}
        if self.teacher_probe is not None:
            why["match_classes"] = "--teacher_probe replaces the classifier"
        if around.alone:
            why = self.every_flag(f"--distill {around.distill} uses no teacher") | why
            del why["path_t"]  # which another student of the process may use
        return why


class LiveTeacher(TeacherSource):
    """A frozen network, run on every batch in eval mode without gradient.

    no_grad and not inference_mode: methods project teacher features with trainable layers, which keep them for
    backward. The first batch prepares a faster copy of `net` (helper.machine.kernels), so the weights must be loaded
    by then. full: batch size to compile for.
    """

    def __init__(
        self, net: TappedNet, autocast: torch.dtype | None = None, kernels: Kernels = PLAIN, full: int | None = None
    ):
        self.net, self.autocast = net.eval().requires_grad_(False), autocast
        self.kernels, self.full = kernels, full
        self.checked = False  # whether its first logits were
        self.dropout = False  # whether dropout and drop path stay on; see keep_dropout()
        self.spec = net.spec
        self.device = next(net.parameters()).device
        self._run: Callable[..., Features] | None = None

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        assert not self.net.model.training, "the teacher was taken to training mode"
        inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        with torch.no_grad(), torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            if self.dropout:  # the copy below is fixed in eval mode
                with noisy(self.net.model):
                    features = self.net(inputs)
            else:
                self._run = self._run or self._prepared(inputs)
                features = self._run(len(batch), inputs)
            self._check(features.get("logits"))
            # the next replay of a CUDA graph overwrites its output, which students of one batch may still need
            copies = self.kernels.graphs
            return {k: features[k].clone() if copies else features[k] for k in self.spec.outputs(taps)}

    def _check(self, logits: Tensor | None) -> None:
        """UserError if the logits of the first batch are useless; waits for the device only once."""
        if self.checked or logits is None:
            return
        self.checked = True
        largest = float(logits.detach().abs().max())  # NaN if any logit is NaN
        if not largest <= ABSURD:
            raise UserError(
                f"the largest logit of the teacher {self.spec.name} on the first batch is {largest:g}, which is "
                "useless: its weights are damaged, or it needs another normalisation (--mean_t, --std_t)"
            )

    def _prepared(self, inputs: Mapping[str, Any]) -> Callable[..., Features]:
        """A callable of (batch size, inputs)."""
        net = folded(self.net, inputs) if self.kernels.fold_teacher else self.net
        if self.autocast is not None:
            net = with_cast_weights(net, inputs, self.autocast)
        return maybe_compiled("teacher", net, self.kernels, self.full, freezing=True)


@contextmanager
def noisy(model: nn.Module) -> Iterator[None]:
    """Training mode for all modules except batch norm during one forward pass, as in MMRazor."""
    for module in model.modules():
        module.training = not isinstance(module, _BatchNorm)
    try:
        yield
    finally:
        model.eval()


def keep_dropout(source: TeacherSource) -> None:
    """Keep the dropout of a live teacher, or of every member of an ensemble, active."""
    for member in source.sources if isinstance(source, EnsembleTeacher) else [source]:
        assert isinstance(member, LiveTeacher)
        member.dropout = True


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """log of the weighted mean of the probabilities; weights: above 0."""
    parts = [z.float().log_softmax(1) + math.log(w) for z, w in zip(logits, weights, strict=True)]
    return torch.stack(parts).logsumexp(0)


class EnsembleTeacher(TeacherSource):
    """Several frozen networks as one: logits = log of the weighted mean of their probabilities (at temperature 1), if
    all have a classifier; a tap of teacher i > 0 is called TAP@i.

    With one teacher this is the teacher itself, as a softmax ignores a constant.
    weights: one per teacher, normalised to sum 1; None: equal.
    """

    def __init__(self, sources: Sequence[TeacherSource], weights: Sequence[float] | None = None):
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise UserError("--teacher_weight needs finite weights of at least 0, and one above 0")
        self.sources, self.weights = list(sources), [w / sum(weights) for w in weights]
        self.spec = sources[0].spec

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        answers = [
            s.features(batch, taps) if taps or w else {} for s, w in zip(self.sources, self.weights, strict=True)
        ]
        found = {tap if i == 0 else f"{tap}@{i}": a[tap] for i, a in enumerate(answers) for tap in taps}
        if self.spec.headless:
            return found
        counted = [(a["logits"], w) for a, w in zip(answers, self.weights, strict=True) if w > 0]
        return {"logits": mean_logits([z for z, _ in counted], [w for _, w in counted]), **found}


class SharedTeacher(TeacherSource):
    """One forward pass per batch for several students: stores the last batch, by identity, with all requested taps.

    taps: the union over the students. A student whose method changes the batch needs
    its own forward pass; so does every student with --accumulate, which splits batches for each.
    """

    def __init__(self, source: TeacherSource, taps: Sequence[str]):
        self.source, self.spec, self.taps = source, source.spec, tuple(dict.fromkeys(taps))
        self._batch: Batch | None = None
        self._features: Features = {}

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        missing = set(taps) - set(self.taps)
        assert not missing, f"taps {sorted(missing)} are not among those of the shared teacher"
        if self._batch is not batch:
            self._batch, self._features = batch, self.source.features(batch, self.taps)
        wanted = self.spec.outputs(taps)
        return {k: v for k, v in self._features.items() if k.partition("@")[0] in wanted}

    def end_epoch(self) -> dict[str, Any]:
        return self.source.end_epoch()
