"""The types that all parts share: a batch, a tapped network, a distiller's context, a loader.

Shape letters: B samples, V views per sample, C channels, H W space, K classes, N training samples.
This file imports nothing from the project; every other file may import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Features = dict[str, Tensor]  # tap name -> tensor; holds "logits" [B*V, K] unless the network is headless
Terms = dict[str, Tensor]  # term name -> unweighted scalar


class UserError(ValueError):
    """A mistake in the user's input. Entry points print the message and exit with code 2."""


def first_line(error: BaseException) -> str:
    """Of an error's message; the kind of the error, if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Inside the context, an error of the disk or of the encoding becomes a UserError: what failed, and why."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: {getattr(error, 'strerror', None) or error}") from error


@dataclass(frozen=True)
class Batch:
    """What every loader yields, on the device.

    inputs: modality -> [B*V, ...]; images are float32 in [0, 1], [B*V, C, H, W], channels_last in memory.
    target: [B] int64. index: [B] int64, position in the training set.
    views: V, the number of views of each sample in `inputs`; views of one sample are adjacent, view 0 first.
    crop: [B] int64 or None; which of the data set's `num_crops` pixel views a sample is,
        (dy * (2 * pad + 1) + dx) * 2 + flip. None if the pixels were changed in any other way.
    view_id: [B] int64 on the CPU or None; index * num_crops + crop, for look-ups that must not wait for the device.
        Its index counts in the full training set, even if the run trains on a part of it.
    soft_target: [B, K] or None; mixed or smoothed labels; if present, the classification term uses them.
    teacher_inputs: the teacher's inputs, if they differ from `inputs`.
    turns: [B*V] int64 or None; the number of counter-clockwise quarter turns of each view.
    labelled: the number of samples with a label, which come first in the batch; None: all. The other targets are -1.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    index: Tensor
    views: int = 1
    crop: Tensor | None = None
    view_id: Tensor | None = None
    soft_target: Tensor | None = None
    teacher_inputs: Mapping[str, Tensor] | None = None
    turns: Tensor | None = None
    labelled: int | None = None

    def __len__(self) -> int:
        return len(self.target)

    def with_inputs(self, inputs: Mapping[str, Tensor], views: int | None = None) -> Batch:
        """The same samples with changed pixels; `crop` and `view_id` no longer hold and are cleared."""
        views = self.views if views is None else views
        return dataclasses.replace(self, inputs=inputs, views=views, crop=None, view_id=None)

    def split(self, parts: int) -> list[Batch]:
        """Split into at most `parts` micro-batches of whole samples, in order."""
        if parts == 1:
            return [self]
        size = -(-len(self) // parts)

        def cut(x: Any, lo: int) -> Any:
            """The rows of `size` samples, of a tensor or of every tensor of a mapping; a sample has one or several."""
            if isinstance(x, Mapping):
                return {k: cut(v, lo) for k, v in x.items()}
            rows = len(x) // len(self) if isinstance(x, Tensor) else 0
            return x[lo * rows : (lo + size) * rows] if rows else x

        def labelled(lo: int) -> int | None:
            return None if self.labelled is None else min(max(self.labelled - lo, 0), size)

        starts = range(0, len(self), size)
        return [Batch(**{k: cut(v, lo) for k, v in vars(self).items()} | {"labelled": labelled(lo)}) for lo in starts]


@dataclass(frozen=True)
class Progress:
    """The position in training. epoch starts at 1 (as in every published schedule), step at 0 in each epoch."""

    epoch: int = 1
    epochs: int = 1
    step: int = 0
    steps_per_epoch: int = 1
    stage: int = 0  # index in the chain of stages; the last stage is the method itself

    @property
    def global_step(self) -> int:
        return (self.epoch - 1) * self.steps_per_epoch + self.step


@dataclass(frozen=True)
class Tap:
    """A named place inside a model: the output (or first input) of one submodule that runs once per forward.

    read: `read(module, tensor)` converts the tapped tensor (a transformer's patch tokens to a map, its queries, keys
        and values); it must not modify the tensor in place. None: the tensor as it is.
    """

    module: str  # dotted path inside the model
    kind: Literal["map", "tokens", "vector", "attention", "logits"] = "map"
    side: Literal["output", "input"] = "output"
    read: Callable[[nn.Module, Tensor], Tensor] | None = None
    per_frame: bool = False  # the module reads frames of all clips, [B*T, ...]; the tap holds their mean over T


@dataclass(frozen=True)
class Published:
    """What the publisher of a network states about it.

    classes: number of classes of the weights its package publishes; 0: they hold no classifier. weights: an
    identifier of the weights, if the name is not enough. adapt: key map of published checkpoints. fresh: modules that
    these lack, besides the classifier. interpolation: how its images were resized. learning_rate: the published
    default, if it differs from the data set's recipe. average_clips: of several views at test time the probabilities
    or the logits (score). twin: another name whose weights have the same keys and shapes. note: a remark for --list.
    """

    classes: int = 1000
    weights: str = ""
    adapt: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    fresh: tuple[str, ...] = ()
    interpolation: str = "bilinear"
    learning_rate: float | None = None
    average_clips: Literal["prob", "score"] = "prob"
    twin: str | None = None
    note: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """One public model name: how to build it and where to look inside it.

    Calling the spec builds the network: `spec(num_classes=100, **options)`, an nn.Module with `forward(x) -> logits`.
    feats: tap names in the order of the published `is_feat=True` list; `stages` are its [1:-1], the last is pooled.
    head: dotted path of the classifier. mean, std: the pixel normalisation (of values in [0, 1]) it was trained with.
    patch: side in px of a transformer's patches; its position embedding is interpolated to other image sizes.
    chain: module paths which, run in order, are the whole network (a linear layer reads a flattened map); () if its
        forward does more, so that the rest of the network cannot be run from one of its stages.
    branches: taps off the path to the logits (auxiliary heads), computed only on request: forward(x, names). The
        network's parts(name) lists their modules.
    headless: the module at `head` returns its input, so the network has a pooled feature and no logits.
    view: side in px to which the network resizes its images.
    """

    name: str
    build: Callable[..., nn.Module]
    taps: Mapping[str, Tap]
    feats: tuple[str, ...]
    head: str
    input: str = "image"  # which entry of Batch.inputs it reads
    input_shape: tuple[int, ...] = (3, 32, 32)  # what it was designed for; a data set may have another
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    patch: int | None = None
    fits: bool = False  # whether `build` takes `shape`, the per-sample shape of its input in the data set
    chain: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    headless: bool = False
    view: int | None = None
    published: Published = Published()

    def __call__(self, num_classes: int = 100, **options: Any) -> nn.Module:
        network = self.build(num_classes=num_classes, **options)
        network.model_spec = self  # type: ignore[assignment]  # where to look inside it, for those who get it
        return network

    def fitted(self, shapes: Mapping[str, tuple[int, ...]]) -> ModelSpec:
        """This network built for inputs of a data set's shape (axes of a sensor, frames of a clip); itself if the shape
        does not change how it is built."""
        if not self.fits or self.input not in shapes:
            return self
        shape = tuple(shapes[self.input])
        return dataclasses.replace(self, build=partial(self.build, shape=shape), input_shape=shape)

    def outputs(self, taps: Sequence[str]) -> tuple[str, ...]:
        """What the network returns for these taps: the taps, and the logits if it has a classifier."""
        return tuple(taps) if self.headless else tuple(dict.fromkeys(("logits", *taps)))

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stage maps, shallow to deep (the published feat[1:-1])."""
        return self.feats[1:-1]

    @property
    def last_map(self) -> str | None:
        """The tap whose mean the classifier reads: the last stage's map, or `classified` if the network has it."""
        return "classified" if "classified" in self.taps else next(reversed(self.stages), None)


class Tapped(Protocol):
    """A network whose forward returns its logits and the requested taps (core.taps.TappedNet)."""

    spec: ModelSpec
    model: nn.Module
    want: frozenset[str]  # the requested taps

    @property
    def head(self) -> nn.Module: ...

    def insert(self, tap: str, layers: nn.Module) -> None: ...

    def run_from(self, tap: str, x: Tensor) -> Features: ...

    def __call__(self, inputs: Mapping[str, Tensor]) -> Features: ...


@dataclass(frozen=True)
class Needs:
    """What a method reads: tap names of both networks, and whether it needs batches of full size."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    full_batches: bool = False

    def __or__(self, other: Needs) -> Needs:
        """What either of them reads, each tap once."""
        student, teacher = self.student + other.student, self.teacher + other.teacher
        whole = self.full_batches or other.full_batches
        return Needs(tuple(dict.fromkeys(student)), tuple(dict.fromkeys(teacher)), whole)


@dataclass(frozen=True)
class Side:
    """Read-only view of one network, handed to a distiller at construction.

    input_shape: per-sample shape of its input in the data set; () if it was not run.
    pools_last: whether the classifier, applied to the mean over the last tapped map, gives the logits; True if the
        network was not run or that map was not tapped.
    net: the network itself, for methods that insert layers or run a part of it; None if there is none.
    """

    spec: ModelSpec
    head: nn.Module
    shapes: Mapping[str, tuple[int, ...]]  # per-sample shape of every requested tap, and of "logits"
    input_shape: tuple[int, ...] = ()
    pools_last: bool = True
    net: Tapped | None = None


@dataclass(frozen=True)
class Context:
    """Everything that a distiller may know when it is built.

    train_labels: [N] int64 on `device`. batch_size: samples per forward in this process (a micro-batch with
    --accumulate). smallest_batch: the smallest batch of an epoch in this process; None if unknown.
    init_rng: CPU generator for parameters and buffers; rng: generator on `device` for draws during training.
    previous: the trained distiller of the stage before, if the method has one.
    """

    num_classes: int
    train_labels: Tensor
    batch_size: int
    student: Side
    teacher: Side | None = None
    previous: nn.Module | None = None
    smallest_batch: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    init_rng: torch.Generator = field(default_factory=torch.Generator)
    rng: torch.Generator = field(default_factory=torch.Generator)


@dataclass(frozen=True)
class Phase:
    """An additional backward pass and optimiser step, before those of the main loss.

    It trains parameters of its own, which are frozen everywhere else; the student's features reach the phase detached.
    Phases run on every n-th step (`every`), with the run's optimiser and lr * lr_scale.
    """

    name: str
    params: Callable[[], Sequence[nn.Parameter]]
    terms: Callable[[Features, Features, Batch, Progress], Terms]
    every: int = 1
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Part:
    """Terms of the loss whose gradient is computed separately.

    terms: None: all terms that no other part names. momentum: None: this part shares one momentum buffer; a number:
    it has its own buffer, whose factor is the optimiser's momentum plus this number. decays: whether weight decay is
    applied with this part.
    """

    name: str
    terms: tuple[str, ...] | None = None
    momentum: float | None = None
    decays: bool = False


Gradients = list[Tensor | None]  # one per parameter; None if the loss does not reach it


class TeacherSource(Protocol):
    """Sources of teacher features: a live network, a cache on disk, or one shared by several students."""

    spec: ModelSpec

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        """The requested taps and "logits", without gradient. Reads batch.teacher_inputs, or else batch.inputs."""
        ...

    def end_epoch(self) -> dict[str, Any]:
        """Entries for the row of the finished epoch."""
        return {}


class Loader:
    """Yields batches on the device. The order depends on (seed, epoch), the views on (seed, epoch, position).

    A subclass implements batch() or batches().
    """

    def __init__(self, steps: int):
        self.steps, self.epoch, self.start_step = steps, 1, 0

    def batch(self, step: int) -> Batch:
        raise NotImplementedError

    def batches(self, start: int) -> Iterator[Batch]:
        """The batches of the epoch from step `start` on."""
        return (self.batch(step) for step in range(start, self.steps))

    def __len__(self) -> int:
        """Steps of a whole epoch, the same on every rank, whatever step the next iteration starts at."""
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        start, self.start_step = self.start_step, 0  # iterated again, an epoch is whole
        return self.batches(start)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Set the epoch of the next iteration and the number of batches to skip at its start."""
        assert 0 <= start_step <= self.steps, f"start_step {start_step} of {self.steps}"
        self.epoch, self.start_step = epoch, start_step

    def end_epoch(self) -> dict[str, Any]:
        """Entries for the row of the finished epoch; counts are summed over processes, other numbers are not."""
        return {}


@dataclass(frozen=True)
class FullSet:
    """The full training set from which a run's samples come: checksum, size, positions [N] (None: all samples)."""

    checksum: str
    count: int
    positions: Tensor | None


@dataclass(frozen=True)
class Batching:
    """How an epoch becomes batches. batch_size counts the samples of all ranks; the order depends on (seed, epoch)."""

    batch_size: int
    seed: int
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1


class DataSet(ABC):
    """One data set with its split and labels; it makes its loaders.

    shapes: modality -> per-sample shape. train_labels: [N] int64, on the CPU. checksum: of pixels and labels.
    num_crops: number of pixel views (crop and flip) of a training image; None if augmentation is open-ended.
    test_checksum: of the test set; None if unknown. evaluated_on: the name of that set in tables.
    full_batches: every batch of an epoch has full size. labelled: the part of the set that has labels.
    streamed: decoded while it is read, not resident on the device. videos: a list of videos, whose clips have several
    views in evaluation. notes: sentences that a run prints once. described: entries of a checkpoint's meta, with which
    its network is evaluated on the same kind of data. full: the set from which --few_ratio chose, so that all parts of
    a set share one teacher cache.
    """

    name: str
    classes: Sequence[str]
    shapes: Mapping[str, tuple[int, ...]]
    train_labels: Tensor
    num_crops: int | None
    evaluated_on: str = "test"
    streamed: bool = False
    videos: bool = False
    notes: Sequence[str] = ()
    full: FullSet | None = None
    full_batches: bool = False

    @cached_property  # which a subclass may assign
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def labelled(self) -> DataSet:
        return self

    def digest_of(self, part: Literal["train", "test"]) -> str | None:
        """Checksum of a part, computed when it is first asked for."""
        return None

    @cached_property
    def checksum(self) -> str:
        return self.digest_of("train") or ""

    @cached_property
    def test_checksum(self) -> str | None:
        return self.digest_of("test")

    @property
    def described(self) -> Mapping[str, Any]:
        return {}

    def train_loader(
        self,
        batch_size: int,
        *,
        seed: int,
        device: torch.device,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> Loader:
        """Shuffled batches. batch_size counts the samples of all ranks; UserError if it exceeds N or the ranks do not
        divide it."""
        return self.shuffled(Batching(batch_size, seed, drop_last, rank, world_size), device)

    @abstractmethod
    def shuffled(self, batching: Batching, device: torch.device) -> Loader:
        """What train_loader() returns."""

    @abstractmethod
    def test_loader(self, batch_size: int, *, device: torch.device, rank: int = 0, world_size: int = 1) -> Loader: ...
