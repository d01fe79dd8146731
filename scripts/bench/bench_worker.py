"""Subjects of the benchmarks: our step, with a live or a cached teacher, its bare arithmetic, and the usual loop."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core.protocols import Batch, Features, Progress, TeacherSource
from core.taps import TappedNet
from dataset.base import DataOptions
from dataset.images.cifar import load_cifar100
from dataset.images.resident import ResidentData, Split
from helper import opening
from helper.evaluation.evaluate import eval_batch, evaluate
from helper.evaluation.metrics import Meter
from helper.machine.kernels import Hardware, pick_kernels, to_device
from helper.networks.load import Network
from helper.options.parse import parse
from helper.options.settings import Settings
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_for
from scripts.bench import measuring
from scripts.bench.measuring import random_network, step_of
from scripts.bench.usual_hsakd import UsualDPCD, UsualHSAKD
from scripts.bench.usual_way import UsualStep, usual_loader

EVAL_BATCHES = 6
LONG_RUN = 10**6  # steps; automatic choices are those of a long run
USUAL = {"kd": UsualStep, "simkd": UsualStep, "hsakd": UsualHSAKD, "dpcd": UsualDPCD}


def random_data(count: int, side: int = 32, classes: int = 100) -> ResidentData:
    """Random pixels, by default of the shape of CIFAR-100; a fifth as many test images."""
    rng = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=rng)
        return Split(images, torch.arange(count) % classes)

    names = [str(k) for k in range(classes)]
    return ResidentData("random", names, split(count), split(max(1, count // 5)), flips=True)


def open_data(request: dict[str, Any]) -> ResidentData:
    if request.get("data_folder"):
        return load_cifar100(DataOptions(root=Path(request["data_folder"])))
    return random_data(request["images"], request.get("side", 32), request.get("classes", 100))


@torch.no_grad()
def random_teacher(name: str, data: ResidentData, device: torch.device, path: Path | None = None) -> Network:
    """Random weights, with batch-norm statistics of the data: activations then have the scale of a trained network."""
    network = random_network(model_for(name, data.shapes["image"]), data.num_classes, path)
    model = network.model.to(device)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over batches, of which there is one
    TappedNet(model, network.spec).to(device).train()(next(iter(data.test_loader(64, device=device))).inputs)
    model.eval()
    return network


class Counted(TeacherSource):
    """Counts the images that the teacher was asked about."""

    def __init__(self, source: TeacherSource):
        self.source, self.spec, self.images = source, source.spec, 0

    def features(self, batch: Batch, taps: Any) -> Features:
        self.images += len(next(iter(batch.inputs.values())))
        return self.source.features(batch, taps)


class OneProcess:
    """What a turn reads of every subject; see measuring.py. average: of the seconds of its steps."""

    average = staticmethod(statistics.median)

    def set_up(self, settings: Settings) -> None:
        self.device, self.autocast = opening.setup(settings)
        self.dtype = "bf16" if self.autocast else "fp32"

    def finish(self, evaluation: bool) -> dict[str, Any]:
        return {}


class Ours(OneProcess):
    """What train_student.py does between two batches: loader, steps of one or several methods, meters.

    request: its optional `epoch` of `epochs` is the one that is trained.
    """

    def __init__(self, request: dict[str, Any]):
        if not request.get("allocator", True):
            opening.tune_allocator = lambda: None
        common = ["--gpu_id", request["gpu_id"], "--precision", request["precision"]]
        common += ["--learning_rate", "0.001"]  # with a random teacher, semckd diverges at larger ones
        common += ["--batch_size", str(request["batch_size"]), "--model_s", request["student"], *request["flags"]]
        lanes = [parse(["--distill", name, *common], teacher=False) for name in request["method"].split(",")]
        settings = lanes[0]
        self.set_up(settings)
        self.data, self.batch_size = open_data(request), settings.training.loop.batch_size
        kernels, _ = pick_kernels(settings.machine.kernels, self.device, LONG_RUN, settings.teacher.fold_teacher)
        teacher = self.open_teacher(request)
        hardware = Hardware(self.device, self.autocast, kernels)
        self.teacher = Counted(opening.shared_source(lanes, teacher, self.data, hardware))
        self.steps, self.meters = [], [Meter(self.device) for _ in lanes]
        self.epoch, self.epochs = request.get("epoch", 1), request.get("epochs", 1)
        for lane in lanes:
            rate, own = lane.training.schedule.learning_rate, teacher if lane.method.teacher_mode == "frozen" else None
            make = optim.optimizer(lane.training.optim, rate, kernels.fused_optimizer)
            setup = StepSetup(make, self.device, self.autocast, kernels=kernels)
            plan, student = stages.StagePlan(self.batch_size, self.epochs), opening.student_spec(lane, self.data)
            self.steps.append(step_of(lane.method, lane.config, student, own, self.data, setup, plan, self.teacher))
        self.loader = self.data.train_loader(self.batch_size, seed=0, device=self.device, drop_last=True)
        self.done = 0

    def open_teacher(self, request: dict[str, Any]) -> Network:
        return random_teacher(request["teacher"], self.data, self.device)

    def batches(self) -> Iterator[Batch]:
        for epoch in itertools.count(1):
            self.loader.set_epoch(epoch)
            yield from self.loader

    def step(self, batch: Batch) -> None:
        for step, meter in zip(self.steps, self.meters, strict=True):
            result = step(batch, Progress(self.epoch, self.epochs, self.done, len(self.loader)))
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
            # the counter does not know kernels that do several multiplications at once
            plain = sdpa_kernel(SDPBackend.MATH)
            with torch.compiler.set_stance("force_eager"), plain, FlopCounterMode(display=False) as counter:
                warnings.filterwarnings("ignore", message=".*global hooks on modules")  # the counter's own
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
        self.folder = tempfile.TemporaryDirectory()
        super().__init__(request | {"flags": [*request["flags"], "--teacher_cache", f"{self.folder.name}/cache"]})
        self.cache: Any = self.teacher.source
        self.subset = min(request["cache_images"], len(self.data.train_labels))
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

    def open_teacher(self, request: dict[str, Any]) -> Network:
        return random_teacher(request["teacher"], self.data, self.device, Path(self.folder.name, "teacher.pth"))

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
        data, method = open_data(request), request["method"]
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
        network = student(num_classes=data.num_classes)
        self.train_step = USUAL[method](
            method, network, student, teacher.model, teacher.spec, self.device, self.autocast
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


def kept(request: dict[str, Any], count: int) -> Any:
    """A subject whose first batches go round, and lie on the device."""
    subject = KINDS[request["kind"]](request)
    batches = list(itertools.islice(subject.batches(), count))
    if request["kind"] == "baseline":
        batches = [[x.to(subject.device) for x in batch] for batch in batches]
    subject.batches = lambda: itertools.cycle(batches)
    return subject
