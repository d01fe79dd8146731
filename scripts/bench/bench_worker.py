"""The subjects of bench.py: our step, with a live or a cached teacher, its bare arithmetic, and the usual loop."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from core.protocols import Batch, Progress
from core.taps import TappedNet
from dataset.base import DataOptions, Split
from dataset.images.cifar import load_cifar100
from dataset.images.resident import ResidentData
from helper import opening
from helper.evaluation.evaluate import eval_batch, evaluate
from helper.evaluation.metrics import Meter
from helper.machine.kernels import pick_kernels, to_device
from helper.networks.load import Network
from helper.networks.teacher_cache import CacheConfig, CachedTeacher, CacheLayout, cache_key
from helper.networks.teacher_sources import SharedTeacher
from helper.options.parse import parse
from helper.options.settings import Settings
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_for
from scripts.bench import measuring
from scripts.bench.measuring import random_network, step_of
from scripts.bench.usual_way import UsualStep, usual_loader

EVAL_BATCHES = 6
LONG_RUN = 10**6  # steps; automatic choices are those of a long run


def random_data(count: int) -> ResidentData:
    """Random pixels of the shape of CIFAR-100; a fifth as many test images."""
    rng = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=rng)
        return Split(images, torch.arange(count) % 100)

    return ResidentData("random", [str(k) for k in range(100)], split(count), split(max(1, count // 5)), flips=True)


def open_data(request: dict[str, Any]) -> ResidentData:
    if request["data_folder"]:
        return load_cifar100(DataOptions(root=Path(request["data_folder"])))
    return random_data(request["images"])


@torch.no_grad()
def random_teacher(name: str, data: ResidentData, device: torch.device) -> Network:
    """Random weights, with batch-norm statistics of the data: activations then have the scale of a trained network."""
    network = random_network(model_for(name, data.shapes["image"]), data.num_classes)
    model = network.model.to(device)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over batches, of which there is one
    TappedNet(model, network.spec).to(device).train()(next(iter(data.test_loader(64, device=device))).inputs)
    model.eval()
    return network


class Counted(SharedTeacher):
    """Counts the images that the teacher was asked about."""

    images = 0

    def features(self, batch: Batch, taps: Any) -> Any:
        if self._batch is not batch:
            self.images += len(next(iter(batch.inputs.values())))
        return super().features(batch, taps)


class OneProcess:
    """What a turn reads of every subject; see measuring.py."""

    def set_up(self, settings: Settings) -> None:
        self.device, self.autocast = opening.setup(settings)
        self.dtype = "bf16" if self.autocast else "fp32"

    def finish(self, evaluation: bool) -> dict[str, Any]:
        return {}


class Ours(OneProcess):
    """What train_student.py does between two batches: loader, steps of one or several methods, meters."""

    def __init__(self, request: dict[str, Any]):
        if not request.get("allocator", True):
            opening.tune_allocator = lambda: None
        common = ["--gpu_id", request["gpu_id"], "--precision", request["precision"]]
        common += ["--batch_size", str(request["batch_size"]), "--model_s", request["student"], *request["flags"]]
        lanes = [parse(["--distill", name, *common], teacher=False) for name in request["method"].split(",")]
        settings = lanes[0]
        self.set_up(settings)
        self.data, self.batch_size = open_data(request), settings.training.loop.batch_size
        self.kernels, _ = pick_kernels(settings.machine.kernels, self.device, LONG_RUN, settings.teacher.fold_teacher)
        student = model_for(settings.model, self.data.shapes["image"])
        teacher = random_teacher(request["teacher"], self.data, self.device)
        frozen = [lane for lane in lanes if lane.method.teacher_mode == "frozen"]
        needs = [stages.union_of_needs(lane.method, lane.config, student, teacher.spec) for lane in frozen]
        taps = tuple(dict.fromkeys(tap for n in needs for tap in n.teacher))
        net = to_device(teacher.tapped(taps), self.device, self.kernels)
        self.teacher = Counted(self.source(teacher, net), taps)
        self.steps, self.meters = [], [Meter(self.device) for _ in lanes]
        for lane in lanes:
            rate, own = lane.training.schedule.learning_rate, teacher if lane in frozen else None
            make = optim.optimizer(lane.training.optim, rate, self.kernels.fused_optimizer)
            setup = StepSetup(make, self.device, self.autocast, kernels=self.kernels)
            plan = stages.StagePlan(self.batch_size, epochs=1)
            self.steps.append(step_of(lane.method, lane.config, student, own, self.data, setup, plan, self.teacher))
        self.loader = self.data.train_loader(self.batch_size, seed=0, device=self.device, drop_last=True)
        self.done = 0

    def source(self, teacher: Network, net: TappedNet) -> Any:
        return teacher.source(net, self.device, self.autocast, self.kernels, self.batch_size)

    def batches(self) -> Iterator[Batch]:
        for epoch in itertools.count(1):
            self.loader.set_epoch(epoch)
            yield from self.loader

    def step(self, batch: Batch) -> None:
        for step, meter in zip(self.steps, self.meters, strict=True):
            result = step(batch, Progress(1, 1, self.done, len(self.loader)))
            meter.update(result.loss, result.logits, result.target, result.terms, self.done)
        self.done += 1

    def loss(self) -> float:
        return sum(meter.read()[0]["loss"] for meter in self.meters)

    def finish(self, evaluation: bool) -> dict[str, Any]:
        """Arithmetic per image, how often each network reads it, and, with `evaluation`, rates of evaluation.

        The connector is what lies between the networks and the loss: `deploy` and `connect`; a whole step also counts
        the backward pass and the loss. A cached teacher costs nothing.
        """
        step, batch = self.steps[0], next(self.batches())

        def macs(work: Callable[[], object]) -> float:
            with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
                work()
            return counter.get_total_flops() / 2 / len(batch)

        def again() -> Batch:
            return dataclasses.replace(batch)  # another object: no answer is remembered for it

        with torch.no_grad():
            nets = macs(lambda: step.student(batch.inputs))
            if step.teacher is not None:
                nets += macs(lambda: step.teacher.features(again(), step.objective.taps))
            connector = macs(lambda: step.objective.features(again())) - nets
        seen = {"student": 0, "teacher": -self.teacher.images}
        hook = step.student.register_forward_pre_hook(
            lambda net, args: seen.update(student=seen["student"] + len(next(iter(args[0].values()))))
        )
        whole = macs(lambda: self.step(again()))
        hook.remove()
        seen["teacher"] += self.teacher.images
        passes = {f"{k}_passes": v / len(batch) for k, v in seen.items()}
        rates = {"eval_img_s": None, "eval_img_s_train": self.autocast} if evaluation else {}
        counts = {"connector_macs": connector, "step_macs": whole, **passes}
        return counts | {name: self.eval_rate(autocast) for name, autocast in rates.items()}

    def eval_rate(self, autocast: torch.dtype | None) -> float:
        deployed, size = self.steps[0].deployed().eval(), eval_batch(self.device)
        batch = next(iter(self.data.test_loader(size, device=self.device)))
        batches = [batch] * EVAL_BATCHES
        evaluate(deployed, batches[:1], self.device, autocast)  # type: ignore[arg-type]
        started = measuring.clock()
        evaluate(deployed, batches, self.device, autocast)  # type: ignore[arg-type]  # reads its result: nothing is pending
        rate = len(batch) * EVAL_BATCHES / (measuring.clock() - started)
        self.steps[0].train()
        return rate


class Cached(Ours):
    """Every teacher's answer comes from a cache that was really filled: all views of the first `cache_images` images.

    Batches draw images of that subset and any of their views, rendered as the loader renders them.
    """

    def __init__(self, request: dict[str, Any]):
        self.subset = request["cache_images"]
        super().__init__(request)
        self.subset = min(self.subset, len(self.data.train_labels))
        self.rng = torch.Generator().manual_seed(1)
        views = self.subset * self.data.num_crops
        started = measuring.clock()
        ids = torch.arange(views)
        for part in ids.split(self.batch_size):
            self.cache.features(self.rendered(part // self.data.num_crops, part % self.data.num_crops), ())
        self.cache.end_epoch()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.fill_s, self.views = measuring.clock() - started, views
        self.cache.hits = self.cache.asked = 0

    def source(self, teacher: Network, net: TappedNet) -> Any:
        self.folder = tempfile.TemporaryDirectory()
        plain = dataclasses.replace(self.kernels, compile=None, parts=())
        self.cache = CachedTeacher(
            teacher.source(net, self.device, self.autocast, plain),
            CacheConfig(teacher_cache=str(Path(self.folder.name) / "cache")),
            cache_key("random", self.data.checksum, teacher.spec, self.autocast),
            CacheLayout(
                len(self.data.train_labels), self.data.num_crops, self.data.num_classes, self.autocast or torch.float32
            ),
            self.device,
        )
        return self.cache

    def rendered(self, index: Tensor, crop: Tensor) -> Batch:
        view_id = index * self.data.num_crops + crop
        index, crop = index.to(self.device), crop.to(self.device)
        target = self.data.on("train", self.device)[1].index_select(0, index)
        return Batch({"image": self.data.views(index, crop)}, target, index, crop=crop, view_id=view_id)

    def batches(self) -> Iterator[Batch]:
        while True:
            index = torch.randint(self.subset, (self.batch_size,), generator=self.rng)
            yield self.rendered(index, torch.randint(self.data.num_crops, (self.batch_size,), generator=self.rng))

    def finish(self, evaluation: bool) -> dict[str, Any]:
        hit_rate = self.cache.hits / self.cache.asked
        filled = {"views_cached": self.views, "fill_s": self.fill_s, "cache_hit_rate": hit_rate}
        return super().finish(evaluation) | filled


class Bare(OneProcess):
    """One half of a kd step with nothing around it: the teacher's forward, or the student's step on labels alone."""

    def __init__(self, request: dict[str, Any]):
        self.set_up(parse(["--gpu_id", request["gpu_id"], "--precision", request["precision"]], teacher=False))
        self.data = open_data(request)
        self.method = request["method"]
        teacher = random_teacher(request["teacher"], self.data, self.device)
        if self.method == "teacher":
            self.net = to_device(teacher.model, self.device).eval().requires_grad_(False)
        else:
            torch.manual_seed(0)
            spec = model_for(request["student"], self.data.shapes["image"])
            self.net = to_device(spec(num_classes=self.data.num_classes), self.device).train()
            make = optim.optimizer(optim.OptimConfig(momentum=0.9, weight_decay=0.0005), 0.05)
            self.optimizer = make(list(self.net.parameters()), 1.0)
        self.loader = self.data.train_loader(request["batch_size"], seed=0, device=self.device, drop_last=True)
        self.last = torch.zeros(())

    batches = Ours.batches

    def step(self, batch: Batch) -> None:
        teacher = self.method == "teacher"
        forward = torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)
        with forward, torch.no_grad() if teacher else contextlib.nullcontext():
            logits = self.net(batch.inputs["image"]).float()
        self.last = F.cross_entropy(logits, batch.target)
        if not teacher:
            self.optimizer.zero_grad(set_to_none=True)
            self.last.backward()
            self.optimizer.step()

    def loss(self) -> float:
        return float(self.last.detach())


class Usual(OneProcess):
    """The baseline: its own loader, step and metrics."""

    def __init__(self, request: dict[str, Any]):
        opening.tune_allocator = lambda: None  # no other program does that
        self.set_up(parse(["--gpu_id", request["gpu_id"], "--precision", request["precision"]], teacher=False))
        data = open_data(request)
        teacher = random_teacher(request["teacher"], data, self.device)
        student = model_for(request["student"], data.shapes["image"])
        self.loader = usual_loader(
            data.train_images.contiguous().numpy(),
            data.train_labels.numpy(),
            student,
            request["batch_size"],
            request["threads"],
            self.device.type == "cuda",
        )
        torch.manual_seed(0)
        self.train_step = UsualStep(
            request["method"],
            student(num_classes=data.num_classes),
            student,
            teacher.model,
            teacher.spec,
            self.device,
            self.autocast,
        )
        self.seen = 0

    def batches(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def step(self, batch: list[Tensor]) -> None:
        self.train_step(*batch)
        self.seen += len(batch[1])

    def loss(self) -> float:
        return self.train_step.sums["loss"] / self.seen


KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {"ours": Ours, "cached": Cached, "bare": Bare, "baseline": Usual}
