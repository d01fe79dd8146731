"""Networks from checkpoints of any form or from published weights, and their deployed parts."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.log import log
from core.option import NAMED, RESULT, Around, Config, option, share
from core.protocols import Context, ModelSpec, Side, Tap, TeacherSource, UserError
from core.taps import TappedNet, probe
from distiller_zoo import method_dict
from distiller_zoo._task import Composite
from distiller_zoo.base import Deployment
from helper.machine.kernels import PLAIN, Kernels, to_device
from helper.networks.checkpoint import Checkpoint, infer_arch, load_weights, num_classes_of, read_checkpoint
from helper.networks.teacher_sources import EnsembleTeacher, LiveTeacher
from models import model_dict, model_in, without_heads
from models._common import with_drop_path
from models._hub import is_folder
from models.external import input_options


@dataclass(frozen=True)
class StartConfig(Config):
    """The initial weights of training."""

    heading = "network"

    pretrained: str | None = option(
        None,
        "initial weights, except the classifier: a checkpoint of a known layout, or torchvision's: imagenet for "
        "IMAGENET1K_V1, others by name, such as imagenet:IMAGENET1K_V2",
        role=RESULT,
        metavar="FILE",
    )
    drop_path: float | None = option(
        None,
        "probability with which an image skips the deepest residual branch in training, falling to 0 at the first "
        "(stochastic depth): ViTs, networks of timm and torchvision that have it",
        check=share,
        role=RESULT,
    )

    def idle(self, around: Around) -> dict[str, str]:
        why = {}
        if "image" in around.data.shapes:
            flags = ("modality", "modality_s", "modality_t")
            why = dict.fromkeys(flags, f"{around.dataset} holds no action recordings")
        if self.drop_path and with_drop_path(around.network, self.drop_path) is None:
            why["drop_path"] = f"{around.network.name} has no residual branch that can be skipped"
        return why


@dataclass(frozen=True)
class TrainTeacherNetwork(StartConfig):
    """The network of train_teacher.py."""

    model: str = option("resnet32x4", "network to train; --list models shows all", role=NAMED, metavar="NAME")
    modality: str | None = option(
        None,
        "modality of action recordings that the network reads, such as video or accel",
        role=RESULT,
        metavar="NAME",
    )
    distill: str = option(
        "vanilla", "a method that needs no teacher; --list methods shows all", role=NAMED, metavar="METHOD"
    )
    pretrained_backbone: str | None = option(
        None,
        "initial weights of the backbone: a checkpoint, or torchvision:NAME; auxiliary heads start untrained",
        role=NAMED,
        metavar="FILE",
    )


@dataclass(frozen=True)
class TrainStudentNetwork(StartConfig):
    """The networks of train_student.py."""

    model_s: str = option(
        "resnet8x4",
        "student network; --list models shows all; several, such as resnet8,vgg8, are trained together",
        role=NAMED,
        metavar="NAME",
    )
    modality_s: str | None = option(
        None, "modality of action recordings that the student reads, such as accel", role=RESULT, metavar="NAME"
    )
    modality_t: str | None = option(None, "modality that the teacher reads, such as video", role=RESULT, metavar="NAME")
    distill: str = option(
        "kd",
        "method; --list methods shows all; kd+crd joins losses, kd,crd trains two students together",
        role=NAMED,
        metavar="METHOD",
    )


def position_notice(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A notice, if a transformer reads images of another size than its position embedding."""
    shape = shapes.get(spec.input, spec.input_shape)
    shape = shape if spec.view is None else (shape[0], spec.view, spec.view)
    if spec.patch is None or shape == spec.input_shape:
        return []
    made, needed = ("x".join(str(side // spec.patch) for side in s[1:]) for s in (spec.input_shape, shape))
    return [
        f"{spec.name}: position embedding interpolated from {made} patches to {needed}, for images of {shape[-1]} px"
    ]


def size_notice(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A notice, if a network is trained on images of less than a quarter of the side for which it was made."""
    shape, made = shapes.get(spec.input, ()), spec.input_shape[-1]
    if len(shape) != 3 or 4 * shape[-1] >= made:
        return []
    return [f"{spec.name} was made for images of {made} px, these have {shape[-1]} px (--image_size {made})"]


def evaluation_notice(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A notice, if published weights get images of another size or interpolation than in their publisher's
    evaluation."""
    spec, shape = network.spec, shapes.get(network.spec.input, ())
    named = published(network.checkpoint.path)
    if named is None or len(shape) != 3:
        return []
    from models.external import published_evaluation

    of_a_package = named.partition(":")[0] in ("torchvision", "timm")
    size, how = published_evaluation(named) if of_a_package else (spec.input_shape[-1], spec.published.interpolation)
    seen, used = (shape[-1], "bilinear") if spec.view is None else (spec.view, spec.published.interpolation)
    if (size, how) == (seen, used):
        return []
    advice = "" if size == seen else f" (--image_size {size})"
    return [
        f"{spec.name}: its publisher evaluates it on images of {size} px, {how}{advice}; these have {seen} px, "
        f"{used} when resized, so its accuracy differs"
    ]


def with_normalisation(
    network: Network, mean: Sequence[float] | None, std: Sequence[float] | None, flags: tuple[str, str]
) -> Network:
    """The network, which reads pixels normalised with this mean and std (of values in [0, 1]; None: its own)."""
    if mean is None and std is None:
        return network
    spec = network.spec
    if spec.mean is None or spec.std is None:
        raise UserError(f"{spec.name} has no pixel normalisation to change: leave {' and '.join(flags)} out")
    chosen = []
    for flag, values, own in ((flags[0], mean, spec.mean), (flags[1], std, spec.std)):
        wanted = tuple(own if values is None else values)
        if len(wanted) not in (1, len(own)) or not all(map(math.isfinite, wanted)):
            raise UserError(f"{flag} {' '.join(map(str, wanted))}: give one finite number, or one per channel")
        chosen.append(wanted * len(own) if len(wanted) == 1 else wanted)
    if min(chosen[1]) <= 0:
        raise UserError(f"{flags[1]} {' '.join(map(str, chosen[1]))} must be above 0")
    changes = f"{network.changes} mean {chosen[0]} std {chosen[1]}"
    return dataclasses.replace(network, spec=dataclasses.replace(spec, mean=chosen[0], std=chosen[1]), changes=changes)


def composite_spec(student: ModelSpec, deployment: Deployment) -> ModelSpec:
    """The student's spec, with paths into the composite and with the taps and head of the deployment."""

    def inside(prefix: str, tap: Tap) -> Tap:
        return dataclasses.replace(tap, module=f"{prefix}.{tap.module}")

    taps = {k: inside("student.model", tap) for k, tap in student.taps.items() if k not in student.branches}
    taps |= {k: inside("deployment", tap) for k, tap in deployment.taps.items()}
    head = f"student.model.{student.head}" if deployment.head is None else f"deployment.{deployment.head}"
    return dataclasses.replace(student, taps=taps, head=head, mean=None, std=None, chain=(), branches=())


def file_checksum(path: str | Path) -> str:
    """First 16 hex digits of the SHA-256; for published weights their identifier."""
    if (named := published(path)) is not None:
        return model_dict[named].published.weights or named
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@dataclass(frozen=True)
class Network:
    """A network read from a checkpoint, ready to be tapped; with `others`, the first of an ensemble.

    weights: of the members' probabilities; None: equal. changes: differences from the file, such as the order of
    classes or a fitted classifier. lacks: why a headless network has no classifier ("its file holds no fc.weight").
    by_features: whether the features of `others` are also read.
    """

    spec: ModelSpec
    model: nn.Module
    checkpoint: Checkpoint
    others: tuple[Network, ...] = ()
    weights: tuple[float, ...] | None = None
    changes: str = ""
    lacks: str = ""
    by_features: bool = False

    @property
    def name(self) -> str:
        return "+".join(network.spec.name for network in (self, *self.others))

    @property
    def checksum(self) -> str:
        """Checksum of all files and changes; two peers in one file have different checksums."""
        members = ((network.checkpoint, network.changes) for network in (self, *self.others))
        return "+".join(file_checksum(c.path) + (f"@{c.peer}" if c.peer else "") + changes for c, changes in members)

    def tapped(self, want: Sequence[str] = ()) -> TappedNet:
        if want and self.others and not self.by_features:
            raise UserError(
                f"the method reads {', '.join(sorted(want))} of its teacher, but an ensemble ({self.name}) has only "
                "logits: give one --path_t, or choose a method that reads only logits"
            )
        return TappedNet(self.model, self.spec, want)

    def source(
        self,
        net: TappedNet,
        device: torch.device,
        autocast: torch.dtype | None,
        kernels: Kernels = PLAIN,
        full: int | None = None,
    ) -> TeacherSource:
        """The source of the teacher's features; net: this network, tapped and on the device. full: see LiveTeacher."""
        first = LiveTeacher(net, autocast, kernels, full)
        if not self.others:
            return first
        want = tuple(net.want) if self.by_features else ()
        rest = [LiveTeacher(to_device(n.tapped(want), device, kernels), autocast, kernels, full) for n in self.others]
        return EnsembleTeacher([first, *rest], self.weights)

    def side(self, net: TappedNet, shapes: Mapping[str, tuple[int, ...]]) -> Side:
        """Its description for methods; net: this network, tapped."""
        side = probe(net, shapes)
        if not self.by_features:
            return side
        more = [probe(n.tapped(tuple(net.want)).eval(), shapes).shapes for n in self.others]
        others = {f"{tap}@{i}": of_one[tap] for i, of_one in enumerate(more, 1) for tap in net.want}
        return dataclasses.replace(side, shapes={**side.shapes, **others})


def ensemble_of(networks: Sequence[Network], weights: tuple[float, ...] | None, by_features: bool) -> Network:
    """Several teachers joined: only their logits, or also their features; then the whole has logits only if all have a
    classifier."""
    first, by_features = networks[0], by_features and len(networks) > 1
    if by_features:
        bare = next((n for n in networks if n.spec.headless), first)
        first = dataclasses.replace(
            first, spec=dataclasses.replace(first.spec, headless=bare.spec.headless), lacks=bare.lacks
        )
    return dataclasses.replace(first, others=tuple(networks[1:]), weights=weights, by_features=by_features)


PUBLISHERS = ("torchvision", "timm", "hf_hub", "open_clip")


def published(path: str | Path) -> str | None:
    """The registry name, if `path` means published weights (timm:NAME, ...) or a folder in the Hub's format."""
    name = str(path)
    if Path(name).exists():
        return f"hf_folder:{Path(name).absolute()}" if is_folder(name) else None
    return name if name.partition(":")[0] in PUBLISHERS else None


def named_network(name: str, num_classes: int | None) -> Network:
    """A network with the weights that its package publishes. num_classes: None: theirs, possibly without a classifier.

    UserError if the number of classes differs or the download fails.
    """
    spec = model_dict[name]
    known = spec.published.classes
    if num_classes not in (None, known):
        has = f"weights for {known} classes" if known else "weights without a classifier"
        raise UserError(
            f"{spec.name} comes with {has}, but the data set has {num_classes}: train a teacher on it "
            f"(train_teacher.py --model {name}) and pass its checkpoint"
        )
    model = spec(pretrained=True, num_classes=known)
    path = Path(name.removeprefix("hf_folder:"))
    network = Network(spec, model, Checkpoint(path, model.state_dict(), {"arch": name}))
    return network if known else without_classifier(network, "its published weights hold none")


def classifiers_of(spec: ModelSpec) -> list[str]:
    """Paths of the classifiers: one, or the two whose logits a DeiT with a distillation token averages."""
    two = [spec.taps[name].module for name in ("class_logits", "distilled_logits") if name in spec.taps]
    return two or [spec.head]


def without_classifier(network: Network, why: str) -> Network:
    """The same backbone without its classifiers, which now return their input. why: as Network.lacks."""
    for path in classifiers_of(network.spec):
        network.model.set_submodule(path, nn.Identity())
    return dataclasses.replace(network, spec=dataclasses.replace(network.spec, headless=True), lacks=why)


def headless_network(path: str | Path, checkpoint: Checkpoint, spec: ModelSpec) -> Network:
    """A network from weights that hold no classifier."""
    network = without_classifier(
        Network(spec, spec(num_classes=1), checkpoint), f"its file holds no {spec.head}.weight"
    )
    load_weights(network.model, checkpoint.state, f"{path} as {spec.name} without a classifier")
    return network


def load_network(
    path: str | Path,
    explicit: str | None,
    num_classes: int | None,
    shapes: Mapping[str, tuple[int, ...]],
    flag: str = "--model_t",
) -> Network:
    """A network from any checkpoint form; a SimKD student has its projector and reused classifier.

    num_classes: of the data set; None: the checkpoint's. shapes: of the data set's inputs. flag: the flag of `explicit`
    in messages.
    """
    if (named := published(path)) is not None:
        return named_network(named, num_classes)
    return assembled(path, *identified(path, explicit, shapes, flag), num_classes, shapes)


def identified(
    path: str | Path, explicit: str | None, shapes: Mapping[str, tuple[int, ...]], flag: str
) -> tuple[Checkpoint, ModelSpec]:
    """A checkpoint, with the keys of its network; arguments as for load_network()."""
    checkpoint = read_checkpoint(path)
    explicit = None if explicit is None else model_dict.resolve(explicit)
    if explicit and model_in(explicit, checkpoint.state).name == checkpoint.meta.get("arch"):
        explicit = None  # the name means two networks, and the file holds the other one
    arch = infer_arch(path, checkpoint, explicit, [*model_dict, *model_dict.aliases], flag)
    spec = model_in(arch, checkpoint.state).fitted(shapes)
    warn_of_twins(path, spec, model_dict[arch], checkpoint.meta.get("arch"), flag)
    if options := input_options(spec.name, checkpoint.meta, checkpoint.state):
        spec = dataclasses.replace(spec, build=partial(spec.build, **options))
    if spec.published.adapt is not None:
        checkpoint = dataclasses.replace(checkpoint, state=spec.published.adapt(checkpoint.state))
    return checkpoint, spec


def assembled(
    path: str | Path,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    num_classes: int | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Network:
    """The network with the checkpoint's weights; num_classes: as in load_network()."""
    classes = num_classes_of(checkpoint.state, spec)
    if num_classes not in (None, classes):
        raise UserError(f"{path} ({spec.name}) was trained for {classes} classes, but the data set has {num_classes}")
    model = spec(num_classes=classes)
    trained, way_out = checkpoint.meta.get("shapes", {}).get(spec.input), "give the architecture it was saved from"
    if spec.fits and trained and tuple(trained) != spec.input_shape:
        was, now = ("x".join(map(str, shape)) for shape in (trained, spec.input_shape))
        flags = "--num_segments" if spec.input == "video" else "modality and --window"
        way_out = f"it was trained on {spec.input} of {was}, not {now}: give the {flags} of its training"
    load_weights(model, checkpoint.state, f"{path} as {spec.name}", way_out)
    if "proj" not in checkpoint.extra:
        return Network(spec, model, checkpoint)
    return _composite(path, checkpoint, spec, model, classes, shapes)


def network_without_heads(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """The deployed part of a network with auxiliary heads: its backbone with the plain network's name and keys.

    The network itself, if it has no heads or the registry has no name for its backbone.
    """
    spec = network.model.student.spec if isinstance(network.model, Composite) else network.spec
    plain = without_heads(spec)
    if not spec.branches or plain is None:
        return network
    checkpoint = network.checkpoint
    state = {k.removeprefix("backbone."): v for k, v in checkpoint.state.items() if k.startswith("backbone.")}
    bare = dataclasses.replace(checkpoint, state=state, meta={**checkpoint.meta, "arch": plain.name})
    return assembled(bare.path, bare, plain, None, shapes)


def load_backbone(net: TappedNet, source: str, num_classes: int, frozen: bool) -> None:
    """Fill a network (below auxiliary heads: its backbone) from a checkpoint or torchvision:NAME.

    From torchvision, the classifier stays untrained if the data set has other classes; a frozen one must fit.
    """
    model: nn.Module = getattr(net.model, "backbone", net.model)
    head = net.spec.head.removeprefix("backbone.") if net.spec.branches else net.spec.head
    if source.startswith("torchvision:"):
        published = model_dict[source]  # UserError for an unknown name
        from models.external import CLASSES, load_published

        if frozen and num_classes != CLASSES:
            raise UserError(
                f"{source} has {CLASSES} classes, but the data set has {num_classes}: a frozen backbone needs a "
                "classifier that fits; leave --freeze_backbone out, or train the backbone first"
            )
        load_published(model, published.name.partition(":")[2], True, head)
        return
    checkpoint = read_checkpoint(source)
    state, recorded = checkpoint.state, checkpoint.meta.get("arch")
    held = model_in(recorded if recorded is not None and recorded in model_dict else net.spec.name, state)
    # their number of outputs tells which
    arch = recorded or (held.name if "auxiliary_classifier.fc1.weight" in state else None)
    warn_of_twins(source, without_heads(held) or held, without_heads(net.spec) or net.spec, arch, "--model", True)
    inside = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    load_weights(model, inside or state, f"{source} as the backbone of {net.spec.name}")


def warn_of_twins(
    path: str | Path, spec: ModelSpec, named: ModelSpec, recorded: str | None, flag: str, transferred: bool = False
) -> None:
    """Warn if a name means another network than the weights, or if two networks share every key.

    transferred: whether the weights are used in the named network, even if they were trained in another.
    """
    ours, theirs, twin = spec.published.note, named.published.note, spec.published.twin
    if transferred and ours and theirs and ours != theirs:
        log.warning(
            "warning: %s holds a %s (%s), but its weights are used for a %s (%s), for which they were not trained; "
            "choose a %s that fits",
            *(path, spec.name, ours, named.name, theirs, flag),
        )
    elif ours and theirs and ours != theirs:
        log.warning(
            "warning: %s holds a %s (%s) and is read as such, not as the given %s (%s)",
            *(path, spec.name, ours, named.name, theirs),
        )
    elif twin and recorded is None:
        log.warning(
            "warning: %s fits both %s (%s) and %s (%s) and is read as the first; if its accuracy is much too low, "
            "choose the second with %s",
            *(path, spec.name, ours, twin, model_dict[twin].published.note, flag),
        )


def _composite(
    path: str | Path,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    model: nn.Module,
    num_classes: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> Network:
    meta = checkpoint.meta
    if "shapes_t" not in meta:
        raise UserError(
            f"{path} holds a projector but not the teacher's classifier behind it, so it cannot predict: "
            "train it again with this toolbox, whose checkpoints hold both"
        )
    cls = method_dict[meta["deploys"]]
    known = {f.name for f in dataclasses.fields(cls.Config)}
    cfg = cls.Config(**{k: v for k, v in meta["config"].items() if k in known})
    teacher_spec = model_dict[meta["arch_t"]]
    student = TappedNet(model, spec, cls.needs(cfg, spec, teacher_spec).student)
    head: nn.Module = nn.Identity()
    if saved := checkpoint.extra.get("head"):  # the method deploys the teacher's classifier
        head = nn.Linear(saved["weight"].shape[1], saved["weight"].shape[0], bias="bias" in saved)
    shapes_t = {k: tuple(v) for k, v in meta["shapes_t"].items()}
    for name in cls.needs(cfg, spec, teacher_spec).teacher:  # a file from a version that read the last stage
        if name not in shapes_t:
            shapes_t[name] = shapes_t[teacher_spec.stages[-1]]
    teacher = Side(teacher_spec, head, shapes_t)
    method = cls(cfg, Context(num_classes, torch.zeros(1, dtype=torch.int64), 1, probe(student, shapes), teacher))
    deployment = method.deployment()
    if deployment is None:
        raise UserError(f"{path} records deployed layers of {cls.name}, which has none in this version: train it again")
    deployment.load_entries(checkpoint.extra)
    return Network(composite_spec(spec, deployment), Composite(student, deployment), checkpoint)


def started_from(spec: ModelSpec, weights: str) -> ModelSpec:
    """The same network with published initial weights; a classifier of other classes starts untrained.

    weights: `imagenet` for torchvision's first ones (downloaded), `imagenet:NAME` for those of that name, or a
    checkpoint of any layout in its key map.
    """
    source, colon, name = weights.partition(":")
    if source == "imagenet":
        if colon and not name:
            raise UserError(
                "--pretrained imagenet: has no name after the colon: leave the colon out, or write imagenet:NAME"
            )
        return dataclasses.replace(spec, build=partial(_from_imagenet, spec, name))
    return dataclasses.replace(spec, build=partial(_from_file, spec, read_checkpoint(weights)))


def _from_imagenet(spec: ModelSpec, name: str, **options: Any) -> nn.Module:
    """name: of torchvision's weights; empty for the first."""
    try:
        return spec.build(**options, pretrained=name or True)
    except TypeError as error:
        if "pretrained" not in str(error):
            raise
        raise UserError(
            f"there are no published ImageNet weights of {spec.name}: give a file with --pretrained"
        ) from error


def _from_file(spec: ModelSpec, checkpoint: Checkpoint, **options: Any) -> nn.Module:
    model = spec.build(**options, **input_options(spec.name, checkpoint.meta, checkpoint.state))
    state = checkpoint.state if spec.published.adapt is None else spec.published.adapt(checkpoint.state)
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    fresh = tuple(f"{module}." for module in (*classifiers_of(spec), *spec.published.fresh))
    left = [k for k in own if k not in fits and not k.startswith(fresh) and "num_batches" not in k]
    if left:
        raise UserError(
            f"--pretrained {checkpoint.path} does not fit {spec.name}: {len(left)} of {len(own)} weights are missing "
            f"or of another shape ({', '.join(left[:3])})"
        )
    model.load_state_dict(fits, strict=False)
    return model
