"""From settings to networks: devices, precision, teachers from checkpoints, and the chain of stages."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distiller_zoo import method_dict
from distiller_zoo.base import FRAME_LOGITS, Distiller
from helper.checkpoint import Checkpoint, infer_arch, load_weights, num_classes_of, read_checkpoint
from helper.kernels import PLAIN, Kernels
from helper.param_groups import regroup, tsm_multipliers
from helper.protocols import Context, DataSet, ModelSpec, Needs, Progress, Side, Tap, TeacherSource, UserError
from helper.reporting import log
from helper.step import DistillStep, MakeOptimizer
from helper.taps import TappedNet, probe
from helper.teacher import EnsembleTeacher, LiveTeacher
from models import model_dict, model_in, without_heads


def pick_device(gpu_id: str, place: int = 0) -> tuple[torch.device, str | None]:
    """The device of --gpu_id, and a notice if it is not what was asked for. place: of several ids, this process's."""
    ids = [part.strip() for part in gpu_id.split(",") if part.strip()]
    if not ids or not all(part.isdecimal() for part in ids):
        raise UserError(f"--gpu_id '{gpu_id}' must be a GPU number, such as 0")
    if not torch.cuda.is_available():
        return torch.device("cpu"), f"no CUDA device here: --gpu_id {gpu_id} runs on the CPU"
    chosen = int(ids[place % len(ids)])
    if chosen >= torch.cuda.device_count():
        raise UserError(
            f"--gpu_id {chosen}: this machine has {torch.cuda.device_count()} CUDA device(s), numbered from 0"
        )
    # what is called float32 here is float32; bf16 is for speed
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", chosen), None


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is done by the hardware rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    has = [getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile")]
    return any(check() for check in has)


def pick_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """--precision auto|bf16|fp32 -> autocast dtype, None for float32."""
    if precision == "bf16" or (precision == "auto" and native_bf16(device)):
        return torch.bfloat16
    return None


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def to_device(net: nn.Module, device: torch.device, channels_last: bool = True) -> nn.Module:
    """Weights in the memory order of the images, channels_last; or both in the contiguous one."""
    net.to(device)
    if channels_last:
        return net.to(memory_format=torch.channels_last)
    if isinstance(net, TappedNet) and not net._forward_pre_hooks:
        net.register_forward_pre_hook(_contiguous_inputs)
    return net


def _contiguous_inputs(net: nn.Module, args: tuple[Mapping[str, Tensor]]) -> tuple[Mapping[str, Tensor]]:
    return ({k: x.contiguous() for k, x in args[0].items()},)


def position_notice(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A sentence where a transformer meets images of a size its position embedding was not made for."""
    shape = shapes.get(spec.input, spec.input_shape)
    if spec.patch is None or shape == spec.input_shape:
        return []
    made, needed = ("x".join(str(side // spec.patch) for side in s[1:]) for s in (spec.input_shape, shape))
    return [
        f"{spec.name}: position embedding interpolated from {made} patches to {needed}, for images of {shape[-1]} px"
    ]


class Composite(nn.Module):
    """A deployed student as one plain model: backbone, the method's surviving layers, logits. Reads [0, 1] images."""

    def __init__(self, student: TappedNet, method: Distiller):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, x: Tensor) -> Tensor:
        return self.method.deploy(self.student({self.student.spec.input: x}, ()))["logits"]


def composite_spec(student: ModelSpec, method: Distiller) -> ModelSpec:
    """The student's spec, with paths into the composite and the taps and head that `deploy` replaced."""

    def inside(prefix: str, tap: Tap) -> Tap:
        return dataclasses.replace(tap, module=f"{prefix}.{tap.module}")

    taps = {k: inside("student.model", tap) for k, tap in student.taps.items() if k not in student.branches}
    taps |= {k: inside("method", tap) for k, tap in method.deployed_taps(student).items()}
    own_head = method.deployed_head()
    head = f"student.model.{student.head}" if own_head is None else f"method.{own_head}"
    return dataclasses.replace(student, taps=taps, head=head, mean=None, std=None, branches=())


def file_checksum(path: str | Path) -> str:
    """First 16 hex digits of the SHA-256; of published weights, their name."""
    if (named := published(path)) is not None:
        return named
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@dataclass(frozen=True)
class Network:
    """A network read from a checkpoint, ready to be tapped; with `others`, the first of an ensemble.

    weights: of the members' probabilities, one each; None for equal ones.
    """

    spec: ModelSpec
    model: nn.Module
    checkpoint: Checkpoint
    others: tuple[Network, ...] = ()
    weights: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        return "+".join(network.spec.name for network in (self, *self.others))

    @property
    def checksum(self) -> str:
        """Of the files of all; of two peers in one file each has its own."""
        members = (network.checkpoint for network in (self, *self.others))
        return "+".join(file_checksum(c.path) + (f"@{c.peer}" if c.peer else "") for c in members)

    def tapped(self, want: Sequence[str] = ()) -> TappedNet:
        if want and self.others:
            raise UserError(
                f"the method reads {', '.join(sorted(want))} of its teacher, and an ensemble ({self.name}) has only "
                "logits: give one --path_t, or choose a method of logits alone"
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
        """Who answers for the teacher; net: this network, tapped and on the device. full: see LiveTeacher."""
        first = LiveTeacher(net, autocast, kernels, full)
        if not self.others:
            return first
        rest = [
            LiveTeacher(to_device(n.tapped(), device, kernels.channels_last), autocast, kernels, full)
            for n in self.others
        ]
        return EnsembleTeacher([first, *rest], self.weights)


PUBLISHED_CLASSES = 1000  # of the weights that torchvision and timm publish


def published(path: str | Path) -> str | None:
    """The registry name if `path` names a network with published weights (torchvision:NAME, timm:NAME) and no file."""
    name = str(path)
    known = name.partition(":")[0] in ("torchvision", "timm") and not Path(name).exists()
    return name if known else None


def named_network(name: str, num_classes: int | None) -> Network:
    """A network with the weights its package publishes. UserError: another number of classes, no download."""
    spec = model_dict[name]
    if num_classes not in (None, PUBLISHED_CLASSES):
        raise UserError(
            f"{name} comes with weights for ImageNet's {PUBLISHED_CLASSES} classes, the data set has {num_classes}: "
            f"train a teacher on it (train_teacher.py --model {name}) and pass its checkpoint"
        )
    model = spec(pretrained=True, num_classes=PUBLISHED_CLASSES)
    return Network(spec, model, Checkpoint(Path(name), model.state_dict(), {"arch": name}))


def load_network(
    path: str | Path,
    explicit: str | None,
    num_classes: int | None,
    shapes: Mapping[str, tuple[int, ...]],
    flag: str = "--model_t",
) -> Network:
    """A network from any checkpoint form; a SimKD student comes back with its projector and reused classifier.

    num_classes: what the data set has; None takes the checkpoint's. shapes: of the data set's inputs. flag: what sets
    `explicit` on the command line, for messages.
    """
    if (named := published(path)) is not None:
        return named_network(named, num_classes)
    checkpoint = read_checkpoint(path)
    explicit = None if explicit is None else model_dict.resolve(explicit)
    if explicit and model_in(explicit, checkpoint.state).name == checkpoint.meta.get("arch"):
        explicit = None  # one name of two networks, and the file holds the other
    arch = infer_arch(path, checkpoint, explicit, [*model_dict, *model_dict.aliases], flag)
    spec = model_in(arch, checkpoint.state).fitted(shapes)
    warn_of_twins(path, spec, model_dict[arch], checkpoint.meta.get("arch"), flag)
    if spec.adapt is not None:
        checkpoint = dataclasses.replace(checkpoint, state=spec.adapt(checkpoint.state))
    return _assembled(path, checkpoint, spec, num_classes, shapes)


def _assembled(
    path: str | Path,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    num_classes: int | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Network:
    """The network with the checkpoint's weights; num_classes: as in load_network()."""
    classes = num_classes_of(checkpoint.state, spec)
    if num_classes is not None and classes is not None and classes != num_classes:
        raise UserError(f"{path} ({spec.name}) was trained for {classes} classes, the data set has {num_classes}")
    classes = num_classes if classes is None else classes
    model = spec(num_classes=classes)
    load_weights(model, checkpoint.state, f"{path} as {spec.name}")
    if "proj" not in checkpoint.extra:
        return Network(spec, model, checkpoint)
    return _composite(path, checkpoint, spec, model, classes, shapes)


def network_without_heads(network: Network, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """What is deployed of a network with auxiliary heads: its backbone under the plain network's name and keys.

    Itself where there are no heads, and where the registry has no name for what lies under them.
    """
    spec = network.model.student.spec if isinstance(network.model, Composite) else network.spec
    plain = without_heads(spec)
    if not spec.branches or plain is None:
        return network
    checkpoint = network.checkpoint
    state = {k.removeprefix("backbone."): v for k, v in checkpoint.state.items() if k.startswith("backbone.")}
    bare = dataclasses.replace(checkpoint, state=state, meta={**checkpoint.meta, "arch": plain.name})
    return _assembled(bare.path, bare, plain, None, shapes)


def load_backbone(net: TappedNet, source: str, num_classes: int, frozen: bool) -> None:
    """Fill a network, of one with auxiliary heads what lies under them, from a checkpoint or torchvision:NAME.

    From torchvision, the classifier stays fresh where the data set has other classes; a frozen one must fit.
    """
    model: nn.Module = getattr(net.model, "backbone", net.model)
    head = net.spec.head.removeprefix("backbone.") if net.spec.branches else net.spec.head
    if source.startswith("torchvision:"):
        published = model_dict[source]  # UserError for a name torchvision does not know
        from models.external import CLASSES, load_published

        if frozen and num_classes != CLASSES:
            raise UserError(
                f"{source} knows {CLASSES} classes, the data set has {num_classes}: a frozen backbone needs a "
                "classifier that fits; leave --freeze_backbone out, or train the backbone first"
            )
        load_published(model, published.name.partition(":")[2], True, head)
        return
    checkpoint = read_checkpoint(source)
    state, recorded = checkpoint.state, checkpoint.meta.get("arch")
    held = model_in(recorded if recorded in model_dict else net.spec.name, state)
    told = recorded or (held.name if "auxiliary_classifier.fc1.weight" in state else None)  # their outputs tell whose
    warn_of_twins(source, without_heads(held) or held, without_heads(net.spec) or net.spec, told, "--model", True)
    inside = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    load_weights(model, inside or state, f"{source} as the backbone of {net.spec.name}")


def warn_of_twins(
    path: str | Path, spec: ModelSpec, named: ModelSpec, recorded: str | None, flag: str, lent: bool = False
) -> None:
    """Say so where a name means another network than the weights do, and where two networks share every key.

    lent: whether the weights are taken over by the network named, whatever they were trained in.
    """
    if lent and spec.note and named.note and spec.note != named.note:
        log.warning(
            "warning: %s holds a %s (%s) and its weights now serve a %s (%s), for which they were not trained; choose "
            "a %s that fits",
            *(path, spec.name, spec.note, named.name, named.note, flag),
        )
    elif spec.note and named.note and spec.note != named.note:
        log.warning(
            "warning: %s holds a %s (%s) and is read as that, not as the %s (%s) it was called",
            *(path, spec.name, spec.note, named.name, named.note),
        )
    elif spec.twin and recorded is None:
        log.warning(
            "warning: %s fits %s (%s) and %s (%s) alike and is read as the first; if its accuracy is far off, name "
            "the second with %s",
            *(path, spec.name, spec.note, spec.twin, model_dict[spec.twin].note, flag),
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
    if "head" not in checkpoint.extra or "shapes_t" not in meta:
        raise UserError(
            f"{path} holds a projector without the teacher's classifier it feeds, so it cannot predict; "
            "train it again here, where the checkpoint is self-contained"
        )
    cls = method_dict[meta["deploys"]]
    known = {f.name for f in dataclasses.fields(cls.Config)}
    cfg = cls.Config(**{k: v for k, v in meta["config"].items() if k in known})
    teacher_spec = model_dict[meta["arch_t"]]
    student = TappedNet(model, spec, cls.needs(cfg, spec, teacher_spec).student)
    weight = checkpoint.extra["head"]["weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in checkpoint.extra["head"])
    teacher = Side(teacher_spec, head, {k: tuple(v) for k, v in meta["shapes_t"].items()})
    method = cls(cfg, Context(num_classes, torch.zeros(1, dtype=torch.int64), 1, probe(student, shapes), teacher))
    method.load_deployed_state(checkpoint.extra)
    return Network(composite_spec(spec, method), Composite(student, method), checkpoint)


def describe_method(method: Distiller, cfg: Any, teacher: Side | None) -> dict[str, Any]:
    """What a checkpoint's meta says of the method; enough to rebuild whatever it deploys."""
    deploying = method.deploying()
    config = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name != "members"}
    if deploying is not None:
        config |= {f.name: getattr(deploying.cfg, f.name) for f in dataclasses.fields(deploying.cfg)}
    return {
        "method": method.name,
        "config": config,
        "deploys": None if deploying is None else deploying.name,
        "arch_t": None if teacher is None else teacher.spec.name,
        "shapes_t": {} if teacher is None else {k: list(v) for k, v in teacher.shapes.items()},
    }


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its step, its length, whether it is the method itself, and its own learning rate if any."""

    step: DistillStep
    teacher: Side | None
    epochs: int
    index: int
    final: bool
    constant_lr: float | None = None


def chain_of(method: type[Distiller]) -> tuple[type[Distiller], ...]:
    """First stages first, the method itself last."""
    chain = [method]
    while chain[0].before is not None:
        chain.insert(0, chain[0].before)
    return tuple(chain)


def needs_of(method: type[Distiller], cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
    """What one stage reads, the scores of every frame included where they are compared."""
    needs = method.needs(cfg, student, teacher)
    if not cfg.frame_logits or teacher is None:
        return needs
    for spec in (student, teacher):
        if FRAME_LOGITS not in spec.taps:
            raise UserError(
                f"--frame_logits compares the scores of every frame, and {spec.name} has none: leave it out, so that "
                "scores of clips are compared"
            )
    return dataclasses.replace(needs, student=(*needs.student, FRAME_LOGITS), teacher=(*needs.teacher, FRAME_LOGITS))


def started_from(spec: ModelSpec, weights: str) -> ModelSpec:
    """The same network, which starts from published weights; a classifier of other classes starts fresh.

    weights: `imagenet` for torchvision's first ones (fetched), `imagenet:NAME` for those of that name, or a checkpoint
    of any layout its key map knows.
    """
    source, colon, name = weights.partition(":")
    if source == "imagenet":
        if colon and not name:
            raise UserError("--pretrained imagenet: names no weights: leave the colon out, or write imagenet:NAME")
        return dataclasses.replace(spec, build=partial(_from_imagenet, spec, name))
    return dataclasses.replace(spec, build=partial(_from_file, spec, read_checkpoint(weights)))


def _from_imagenet(spec: ModelSpec, name: str, **options: Any) -> nn.Module:
    """name: of torchvision's weights; empty for the first."""
    try:
        return spec.build(**options, pretrained=name or True)
    except TypeError as error:
        if "pretrained" not in str(error):
            raise
        raise UserError(f"nobody publishes ImageNet weights of {spec.name}: name a file with --pretrained") from error


def _from_file(spec: ModelSpec, checkpoint: Checkpoint, **options: Any) -> nn.Module:
    model = spec.build(**options)
    state = checkpoint.state if spec.adapt is None else spec.adapt(checkpoint.state)
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    left = [k for k in own if k not in fits and not k.startswith(f"{spec.head}.") and "num_batches" not in k]
    if left:
        raise UserError(
            f"--pretrained {checkpoint.path} does not fit {spec.name}: {len(left)} of {len(own)} weights are missing "
            f"or of another shape ({', '.join(left[:3])})"
        )
    model.load_state_dict(fits, strict=False)
    return model


def union_of_needs(method: type[Distiller], cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
    needs = [needs_of(m, cfg, student, teacher) for m in chain_of(method)]
    return Needs(
        tuple(dict.fromkeys(x for n in needs for x in n.student)),
        tuple(dict.fromkeys(x for n in needs for x in n.teacher)),
        any(n.full_batches for n in needs),
    )


LATE = 10_000  # an epoch by which every term counts that ever will

OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw", "rmsprop")


def sgd(momentum: float, weight_decay: float, lr: float, fused: bool = True) -> MakeOptimizer:
    """The published optimiser: SGD on everything that trains, batch norm and biases included."""
    return optimizer("sgd", momentum, weight_decay, lr, fused=fused)


def optimizer(
    name: str,
    momentum: float,
    weight_decay: float,
    lr: float,
    norm_weight_decay: float | None = None,
    fused: bool = True,
) -> MakeOptimizer:
    """One of OPTIMIZERS, as torch has it; rmsprop with torchvision's alpha and eps of 0.9 and 0.0316.

    norm_weight_decay: of parameters with one dimension (normalisation layers and biases); None treats all alike.
    fused: in one kernel, where torch has one; otherwise as torch does it by default.
    """
    fast = fused or None
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=momentum, fused=fast),
        "nesterov": partial(torch.optim.SGD, momentum=momentum, nesterov=True, fused=fast),
        "adam": partial(torch.optim.Adam, fused=fast),
        "adamw": partial(torch.optim.AdamW, fused=fast),
        "rmsprop": partial(torch.optim.RMSprop, momentum=momentum, alpha=0.9, eps=0.0316),
    }

    def make(params: Sequence[nn.Parameter], scale: float) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": list(params), "lr_scale": scale}]
        if norm_weight_decay is not None:
            flat = [p for p in params if p.ndim <= 1]
            groups[0]["params"] = [p for p in params if p.ndim > 1]
            groups.append({"params": flat, "lr_scale": scale, "weight_decay": norm_weight_decay})
        return kinds[name](groups, lr=lr * scale, weight_decay=weight_decay)

    return make


def warn_of_late_terms(method: Distiller, epochs: int) -> None:
    """Say so where a run ends before terms of its method begin to count."""

    def weights(epoch: int) -> dict[str, float]:
        return method.weights(Progress(epoch, max(epoch, epochs)))

    counted = {name for epoch in range(1, epochs + 1) for name, weight in weights(epoch).items() if weight}
    late = [name for name, weight in weights(LATE).items() if weight and name not in counted]
    if late:
        begin = next(epoch for epoch in range(epochs + 1, LATE + 1) if weights(epoch).get(late[0]))
        log.warning(
            "warning: %s counts from epoch %d on and --epochs is %d, so this run trains without it: train longer, or "
            "let %s begin sooner (its flags: --distill %s --help)",
            *(" + ".join(late), begin, epochs, method.name, method.name),
        )


def build_stages(
    method: type[Distiller],
    cfg: Any,
    student: ModelSpec,
    teacher: Network | None,
    data: DataSet,
    *,
    batch_size: int,
    device: torch.device,
    make_optimizer: MakeOptimizer,
    epochs: int,
    init_epochs: int = 0,
    init_seed: int = 0,
    autocast: torch.dtype | None = None,
    accumulate: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    source: Callable[[TappedNet], TeacherSource] | None = None,
    kernels: Kernels = PLAIN,
    clip: float = 0.0,
    ema: tuple[float, int] | None = None,
    param_groups: str = "one",
) -> Iterator[Stage]:
    """Yield one stage after the other; the networks live through all of them. Train a stage before taking the next."""
    chain = chain_of(method)
    mode = method.teacher_mode
    if mode == "frozen" and teacher is None:
        raise UserError(f"--distill {method.name} needs a teacher: pass its checkpoint with --path_t")
    peer_spec = student if mode == "trained" else None
    teacher_spec = None if mode == "absent" else peer_spec or (teacher and teacher.spec)
    needs = union_of_needs(method, cfg, student, teacher_spec)
    full, last = -(-batch_size // accumulate), kernels.channels_last
    s_net = to_device(TappedNet(student(num_classes=data.num_classes), student, needs.student), device, last)
    peer = t_source = t_side = None
    if mode == "trained":
        peer = to_device(TappedNet(student(num_classes=data.num_classes), student, needs.teacher), device, last)
        t_side = probe(peer, data.shapes)
    elif mode == "frozen":
        # eval before anything else: a new wrapper is in training mode, and would take the teacher there
        t_net = to_device(teacher.tapped(needs.teacher).eval().requires_grad_(False), device, last)
        t_source = source(t_net) if source else teacher.source(t_net, device, autocast, kernels, full)
        t_side = probe(t_net, data.shapes)
    rng = torch.Generator(device).manual_seed(init_seed + 1)
    ctx = Context(
        data.num_classes,
        data.train_labels.to(device),
        full,
        probe(s_net, data.shapes),
        t_side,
        device=device,
        init_rng=torch.Generator().manual_seed(init_seed),
        rng=rng,
    )
    previous: Distiller | None = None
    for i, stage in enumerate(chain):
        s_net.requires_grad_(True)
        if previous is not None:
            ctx = dataclasses.replace(ctx, previous=previous.requires_grad_(False))
        current = to_device(stage(cfg, ctx), device, last)
        step = DistillStep(
            s_net,
            t_source,
            current,
            make_optimizer,
            needs=needs_of(stage, cfg, student, teacher_spec),
            peer=peer,
            wrap=wrap,
            autocast=autocast,
            accumulate=accumulate,
            rng=rng,
            kernels=kernels,
            full=full,
            clip=clip,
            ema=ema if stage is chain[-1] else None,
        )
        if param_groups != "one":
            regroup(step.optimizers["main"], tsm_multipliers(s_net.model, s_net.head, param_groups == "tsm_fc5"))
        final = i == len(chain) - 1
        if final:
            warn_of_late_terms(current, epochs)
        yield Stage(step, t_side, epochs if final else init_epochs, i, final, stage.constant_lr(cfg, student))
        previous = current
