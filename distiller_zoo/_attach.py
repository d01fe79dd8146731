"""A method in your own training loop: attach() joins two networks, Task computes the loss of a batch."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from core.log import log
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Side, TeacherSource, UserError
from core.taps import TappedNet, probe, without_taps
from distiller_zoo import method_dict
from distiller_zoo._combined import Combined, CombinedConfig, common_weights
from distiller_zoo._math import detached
from distiller_zoo._task import Composite, Deployed, Objective, Trained, chain_of, needs_of, union_of_needs
from distiller_zoo.base import Distiller

Inputs = Tensor | Mapping[str, Tensor]  # images [B, C, H, W], or entry of Batch.inputs -> tensor
BATCH_SIZE = 64  # the default when none is given


class FrozenTeacher(TeacherSource):
    """A network in eval mode without gradient. transform: applied to its inputs; None: none."""

    def __init__(self, net: TappedNet, transform: Callable[[Tensor], Tensor] | None = None):
        self.net, self.spec, self.transform = net.eval().requires_grad_(False), net.spec, transform

    @torch.no_grad()
    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        inputs = dict(batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs)
        if self.transform is not None:
            inputs[self.spec.input] = self.transform(inputs[self.spec.input])
        features = self.net(inputs)
        return {k: features[k] for k in ("logits", *taps)}


class Task(nn.Module):
    """Calling it with a batch returns the loss of a method, as train_student.py computes it. Made by attach().

    parameters() are those to optimise: of the student and the method, never of the teacher. The loss is float32 under
    any autocast. Gradients of several micro-batches may be accumulated before a step; DDP(task) works.
    """

    def __init__(
        self,
        trained: Trained,
        objective: Objective,
        following: Sequence[Any],
        rng: torch.Generator,
        batch_size: int | None = None,
    ):
        """batch_size: the only one that the method takes; None: any."""
        super().__init__()
        self.trained = trained
        self._objective, self._following, self._rng = objective, following, rng
        self._batch_size = batch_size
        self._kept: list[tuple[Features, Features, Batch]] = []
        self._place = (0, 0)  # epoch of the last batch, batches seen in it
        self._prepared = not self.method.prepares_teacher

    @property
    def method(self) -> Distiller:
        return self.trained.method

    @property
    def student(self) -> TappedNet:
        return self.trained.student

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(self._objective.params) if recurse else iter(())

    def train(self, mode: bool = True) -> Task:
        super().train(mode)
        if mode:
            self._objective.train()
        return self

    def prepare_teacher(self, batches: Iterable[tuple[Inputs, Tensor]]) -> None:
        """One pass over the training set, for methods that learn from the teacher before training (kdpp).

        batches: (inputs, targets), such as a DataLoader; it is iterated once for each method that needs it.
        """
        device = next(self.student.parameters()).device

        def there(images: Inputs, targets: Tensor) -> Batch:
            inputs = {k: x.to(device) for k, x in inputs_of(images, self.student.spec).items()}
            return self._batch(inputs, targets.to(device), None)

        self._objective.prepare_teacher(lambda: (there(images, targets) for images, targets in batches))
        self._prepared = True

    def own_optimizers(self, make: Callable[..., Optimizer] | None = None) -> list[Optimizer]:
        """Set the optimisers of separately trained parts (the discriminator of cakd); the task steps them itself.

        make: (parameters, scale) -> optimiser, with the learning rate of the main one times scale. Call it once before
        the first batch, for methods with such parts.
        """
        if make is not None:
            self._objective.optimize_phases(make)
        return list(self._objective.optimizers.values())

    def forward(
        self,
        images: Inputs,
        targets: Tensor,
        index: Tensor | None = None,
        epoch: int = 1,
        epochs: int = 1,
        steps_per_epoch: int = 1,
    ) -> dict[str, Any]:
        """loss: scalar, mean over the batch. logits: [B, K] as deployed. terms: name -> unweighted scalar, detached.

        images: [B, C, H, W], or modality -> tensor. targets: [B] classes, or [B, K] probabilities. index: [B] positions
        in the training set, for methods that store samples (crd). epoch: from 1; epochs, steps_per_epoch: for
        methods whose weights change over time.
        """
        if self.training and self.method.by_index and index is None:
            raise UserError(f"{self.method.name} stores every sample: pass index=, the positions in the training set")
        if self.training and not self._prepared:
            raise UserError(
                f"{self.method.name} reads the teacher's features of the whole training set: call "
                "task.prepare_teacher(loader) first"
            )
        batch = self._batch(images, targets, index)
        if not self.training:
            logits = Deployed(self.student, self.method, bare=True)(batch.inputs)["student"]
            return {"loss": nn.functional.cross_entropy(logits, targets), "logits": logits, "terms": {}}
        if self._batch_size not in (None, len(targets)):
            raise UserError(
                f"{self.method.name} was attached with batch_size={self._batch_size}, but this batch has "
                f"{len(targets)} samples; the last, smaller batch of an epoch must be dropped"
            )
        if missing := [p.name for p in self._objective.isolated if p.name not in self._objective.optimizers]:
            raise UserError(
                f"{missing[0]} needs a separate optimiser: call task.own_optimizers(lambda params, scale: "
                "torch.optim.SGD(params, lr=0.05 * scale)) first"
            )
        seen = self._place[1] if self._place[0] == epoch else 0
        self._place = (epoch, seen + 1)
        progress = Progress(epoch, max(epoch, epochs), seen, max(seen + 1, steps_per_epoch))
        batch = self.method.prepare(batch)
        done = self._objective(batch, progress, self.method.weights(progress))
        if self.method.wants_after_step:
            self._kept.append((detached(done.s), detached(done.t), batch))
        return {"loss": done.loss, "logits": done.s["logits"].detach()[:: batch.views], "terms": done.terms}

    def _batch(self, images: Inputs, targets: Tensor, index: Tensor | None) -> Batch:
        inputs = inputs_of(images, self.student.spec)
        hard, soft = (targets, None) if targets.ndim == 1 else (targets.argmax(1), targets)
        if index is None:
            index = torch.arange(len(hard), device=hard.device)
        return Batch(inputs, hard, index, soft_target=soft)

    def after_step(self) -> None:
        """Call it after optimizer.step(): it updates memory banks with the features."""
        kept, self._kept = self._kept, []
        self._objective.after_step(kept)

    def deployed(self) -> nn.Module:
        """A copy of the deployed student: an nn.Module in eval mode, images [B, C, H, W] -> logits [B, K]."""
        if self.method.deployment() is None and self.student.spec.mean is None:
            return without_taps(copy.deepcopy(self.student.model)).eval()
        whole = Composite(self.student, self.method.deployment())
        return copy.deepcopy(whole).eval()  # copied together: they may share layers

    def next_stage(self) -> Task | None:
        """The task of the next stage, for methods that train a stage first (ab, ft, fsp); None after the last one.

        The networks are the same; make a new optimiser.
        """
        if not self._following:
            return None
        build, *rest = self._following
        self.student.requires_grad_(True)
        task = build(self.method.requires_grad_(False), rest)
        return task.train(self.training)

    def get_extra_state(self) -> dict[str, Any]:
        own = {name: optimizer.state_dict() for name, optimizer in self._objective.optimizers.items()}
        state = {"optimizers": own, "place": self._place, "rng": self._rng.get_state()}
        return state | ({"prepared": self._prepared} if self.method.prepares_teacher else {})

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        for name, optimizer in self._objective.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self._place = tuple(state["place"])
        self._prepared = state.get("prepared", self._prepared)
        self._rng.set_state(state["rng"].cpu())


def attach(
    method: str,
    student: nn.Module,
    teacher: nn.Module | None = None,
    *,
    sample: Inputs,
    num_classes: int | None = None,
    train_labels: Tensor | Sequence[int] | None = None,
    taps: Mapping[str, Mapping[str, str]] | None = None,
    teacher_transform: Callable[[Tensor], Tensor] | None = None,
    **settings: Any,
) -> Task:
    """Join two networks by a method: `task = attach("crd", student, teacher, sample=images[:2], train_labels=labels)`.

    method: a name of the registry, or several joined by +. student, teacher: classifiers, on their device; the teacher
    is put into eval mode and frozen. For two peers (dml) pass the second network as the teacher.
    sample: a few inputs of the training loop; both networks are run on them once, without normalisation;
    teacher_transform: (images) -> the teacher's images, if its normalisation or size differs.
    num_classes: default: that of the student. train_labels: [N] classes of the training set, for methods that store
    samples (crd). taps: {"student": {"stage1": "layer1"}, "teacher": {...}}, module paths of taps that are not found;
    "head" names the classifier. settings: fields of the method's Config, such as kd_T=2; batch_size: of one call, for
    semckd; pixels=True: images are in [0, 1], and networks of this zoo apply their own normalisation.
    Random draws follow torch.manual_seed(). Raises UserError if something does not fit.
    """
    batch_size, pixels = settings.pop("batch_size", None), settings.pop("pixels", False)
    check_arguments(student, teacher, sample, taps or {})
    cls, cfg = configured(method, settings)
    if cls.teacher_mode != "absent" and teacher is None:
        raise UserError(f"{method} needs a second network: pass it as the teacher")
    networks = {"student": student}
    if teacher is not None and cls.teacher_mode != "absent":
        networks["teacher"] = teacher
    specs = {name: spec_of(net, sample, (taps or {}).get(name, {}), pixels) for name, net in networks.items()}
    spec_s, spec_t = specs["student"], specs.get("teacher")
    needs = union_of_needs(cls, cfg, spec_s, spec_t)
    refuse_missing(method, members_of(cls, cfg), needs, batch_size, train_labels)
    device = next(student.parameters()).device
    s_net = TappedNet(student, spec_s, needs.student).to(device)  # mean and std of the normalisation
    side_s = run_once(s_net, sample)
    classes = side_s.shapes["logits"][-1]
    if num_classes not in (None, classes):
        raise UserError(f"num_classes is {num_classes}, but the student has {classes} outputs")
    source = peer = side_t = None
    if spec_t is not None and teacher is not None:
        t_net = TappedNet(teacher, spec_t, needs.teacher).to(device)
        frozen = cls.teacher_mode == "frozen"
        side_t = run_once(t_net, sample, teacher_transform if frozen else None)
        check_classes(side_t, classes, method)
        source, peer = (FrozenTeacher(t_net, teacher_transform), None) if frozen else (None, t_net)
    seed = torch.initial_seed() % 2**63
    labels = class_labels(train_labels, classes)
    context = Context(
        classes,
        labels.to(device),
        batch_size or BATCH_SIZE,
        side_s,
        side_t,
        device=device,
        init_rng=torch.Generator().manual_seed(seed),
        rng=torch.Generator(device).manual_seed(seed + 1),
    )

    def stage_of(stage: type[Distiller], previous: Distiller | None, following: Sequence[Any]) -> Task:
        built = stage(cfg, dataclasses.replace(context, previous=previous)).to(device)
        refuse_parts(built, method)
        trained = Trained(s_net, peer, built)
        objective = Objective(trained, source, needs_of(stage, cfg, spec_s, spec_t).teacher)
        return Task(trained, objective, following, context.rng, batch_size if needs.full_batches else None).train()

    first, *later = (partial(stage_of, stage) for stage in chain_of(cls))
    return first(None, later)


def check_arguments(student: Any, teacher: Any, sample: Any, taps: Any) -> None:
    for side, net in (("student", student), ("teacher", teacher)):
        if not isinstance(net, nn.Module) and not (net is None and side == "teacher"):
            raise UserError(f"the {side} must be an nn.Module, not a {type(net).__name__}")
    if student is teacher:
        raise UserError("student and teacher are one module, which would be frozen: pass a copy as the teacher")
    if not isinstance(sample, Tensor | Mapping):
        raise UserError(f"sample= must be a few inputs, such as images[:2], not a {type(sample).__name__}")
    sides = taps.items() if isinstance(taps, Mapping) else [("", taps)]
    if any(side not in ("student", "teacher") or not isinstance(own, Mapping) for side, own in sides):
        raise UserError(f"taps= must be {{'student': {{tap: module}}, 'teacher': {{...}}}}, not {taps}")


def class_labels(train_labels: Sequence[int] | Tensor | None, classes: int) -> Tensor:
    labels = torch.zeros(1, dtype=torch.int64) if train_labels is None else torch.as_tensor(train_labels)
    if (
        labels.ndim != 1
        or labels.is_floating_point()
        or not len(labels)
        or not 0 <= labels.min() <= labels.max() < classes
    ):
        raise UserError(f"train_labels must be the classes [N] of the training set, from 0 to {classes - 1}")
    return labels


def refuse_missing(
    method: str,
    members: Sequence[type[Distiller]],
    needs: Needs,
    batch_size: int | None,
    train_labels: Tensor | Sequence[int] | None,
) -> None:
    if needs.full_batches and batch_size is None:
        raise UserError(f"{method} needs batches of one size: pass batch_size=, and drop the last, smaller batch")
    if any(member.by_index for member in members) and train_labels is None:
        raise UserError(f"{method} stores every sample: pass train_labels=, the classes [N] of the training set")


def refuse_parts(built: Distiller, method: str) -> None:
    if built.parts():
        raise UserError(
            f"{method} needs separate gradients of the parts of its loss, which attach() does not compute: train it "
            "with train_student.py"
        )


def members_of(cls: type[Distiller], cfg: Any) -> list[type[Distiller]]:
    return [m for m, _ in cfg.members] if isinstance(cfg, CombinedConfig) else [cls]


def configured(method: str, settings: Mapping[str, Any]) -> tuple[type[Distiller], Any]:
    """A method and its Config; for an unknown field, a UserError with the nearest name."""
    methods = [method_dict[name] for name in method.split("+")]
    fields = {m.name: [f.name for f in dataclasses.fields(m.Config)] for m in methods}
    known = dict.fromkeys(name for names in fields.values() for name in names)
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(f"{method} has no setting '{name}'" + (f": did you mean {near[0]}?" if near else ""))
    try:
        return joined_config(methods, settings, fields)
    except TypeError as error:  # such as a text that is compared with a number
        raise UserError(f"{method}: a setting has the wrong type ({error})") from error


def joined_config(
    methods: Sequence[type[Distiller]], settings: Mapping[str, Any], fields: Mapping[str, Sequence[str]]
) -> tuple[type[Distiller], Any]:
    if len(methods) == 1:
        return methods[0], methods[0].Config(**settings)
    rows = [{"cls": m.Config.cls, "div": m.Config.div, "kd_T": m.Config.kd_T} for m in methods]
    common = common_weights(methods, rows) | {k: v for k, v in settings.items() if hasattr(Distiller.Config, k)}
    shared = {k: v for k, v in common.items() if k != "beta"}
    members = []
    for m in methods:
        own = {k: v for k, v in settings.items() if k in fields[m.name] and k not in common}
        members.append((m, m.Config(**{**shared, **own, "beta": m.Config.beta * common["beta"]})))
    cfg = CombinedConfig(members=tuple(members), **common)
    Combined.check(cfg)
    return Combined, cfg


def inputs_of(images: Inputs, spec: ModelSpec) -> dict[str, Tensor]:
    return {spec.input: images} if isinstance(images, Tensor) else dict(images)


def spec_of(net: nn.Module, sample: Inputs, taps: Mapping[str, str], pixels: bool) -> ModelSpec:
    """The taps of a network: those of its spec, or found by one run."""
    spec = getattr(net, "model_spec", None)
    if spec is None or taps:
        from models.external import found_spec

        if not isinstance(sample, Tensor):
            raise UserError(
                f"{type(net).__name__} is not a network of this zoo; taps of other networks can be found for images "
                "only"
            )
        with torch.no_grad():
            spec = found_spec(net, sample, taps)
        shown = ", ".join(f"{name} {tap.module}" for name, tap in spec.taps.items())
        log.info("%s: classifier %s, taps %s", spec.name, spec.head, shown)
    return spec if pixels else dataclasses.replace(spec, mean=None, std=None)


def run_once(net: TappedNet, sample: Inputs, transform: Callable[[Tensor], Tensor] | None = None) -> Side:
    inputs = inputs_of(sample, net.spec)
    if transform is not None:
        inputs[net.spec.input] = transform(inputs[net.spec.input][:1])
    return probe(net, {k: tuple(v.shape[1:]) for k, v in inputs.items()})


def check_classes(teacher: Side, classes: int, method: str) -> None:
    if teacher.shapes["logits"][-1] != classes:
        raise UserError(
            f"{method}: the teacher has {teacher.shapes['logits'][-1]} classes, but the student has {classes}; both "
            "must have the same"
        )
