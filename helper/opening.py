"""Opens device, data, teacher and the source of teacher features, from the settings of a session."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from core import machine
from core.files import remember, remembered
from core.log import log
from core.machine import usable_cores
from core.option import Around, idle_in
from core.protocols import Batch, DataSet, Loader, ModelSpec, TeacherSource, UserError
from dataset import dataset_dict
from dataset.base import DataOptions
from dataset.images.unlabelled import UnlabelledData, with_unlabelled
from distiller_zoo._task import chain_of, union_of_needs
from distiller_zoo.base import Distiller
from helper.evaluation.evaluate import TestBatches, evaluate, near_chance, open_test
from helper.machine import distributed
from helper.machine.devices import own_device, pick_autocast
from helper.machine.kernels import PLAIN, Hardware, Kernels, to_device, tune_allocator
from helper.machine.seeding import seed_everything
from helper.networks.classes import matched
from helper.networks.head_probe import with_probe
from helper.networks.headless import load_teacher, refuse_headless, with_view
from helper.networks.load import (
    Network,
    ensemble_of,
    evaluation_notice,
    position_notice,
    started_from,
    with_normalisation,
)
from helper.networks.teacher_cache import CachedTeacher, cache_key, cache_layout, refuse_unusable, taps_outside_cache
from helper.networks.teacher_sources import SharedTeacher, keep_dropout
from helper.options.settings import Settings
from helper.training.schedule import parse_decay_epochs
from models import model_for
from models._common import with_drop_path


@dataclass(frozen=True)
class Opened:
    """Shared by all students of a process."""

    lanes: Sequence[Settings]
    data: DataSet
    loader: Loader
    test_loader: TestBatches
    teacher: Network | None
    source: TeacherSource | None
    hardware: Hardware


def seed_of(settings: Settings) -> int:
    """The random seed of a run."""
    assert settings.run.seed is not None, "the parser gives every run a seed"
    return settings.run.seed


def setup(settings: Settings) -> tuple[torch.device, torch.dtype | None]:
    """Device and precision, kernels and seeds."""
    cfg = settings.machine.device
    device = own_device(cfg.gpu_id, named="gpu_id" in settings.given)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not cfg.deterministic
    seed_everything(seed_of(settings))
    if settings.machine.ranks.sync_bn and device.type != "cuda":
        raise UserError("--sync_bn works on CUDA devices only: leave it out")
    tune_allocator()
    return device, pick_autocast(cfg.precision, device)


def open_data(settings: Settings) -> DataSet:
    """The data set of --dataset; rank 0 downloads it. The default data folder is made if it is missing."""
    source = settings.data.source
    folder, made = Path(source.data_folder), False
    if "data_folder" not in settings.given and not folder.exists():
        with contextlib.suppress(OSError):  # the data set reports missing files
            folder.mkdir(parents=True)  # a fresh clone downloads to it
            made = True
    options = DataOptions(
        root=folder,
        image_size=source.image_size,
        val_fraction=source.val_fraction,
        val_dir=source.val_dir,
        few_ratio=source.few_ratio,
        seed=seed_of(settings),
        num_workers=min(-(-source.num_workers // machine.local_world_size()), usable_cores()),
        modality=settings.modalities,
        stream=settings.data.stream,
        recordings=settings.data.recordings,
        video=settings.data.video,
        unlabelled=settings.data.unlabelled,
    )
    try:
        data = distributed.main_first(lambda: dataset_dict[source.dataset](options))  # rank 0 downloads
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless something was put there
    if data.num_classes < 2 and not isinstance(data, UnlabelledData):
        raise UserError(f"{data.name} has only one class, {data.classes[0]}: a classifier needs at least two")
    data = with_unlabelled(data, settings.data.unlabelled, settings.data.stream.skip_corrupt)
    if (size := settings.training.loop.batch_size) > len(data.train_labels):
        raise UserError(f"--batch_size {size} is larger than the training set ({len(data.train_labels)} samples)")
    for note in data.notes:
        log.info(note)
    return data


def refuse_unlabelled(lanes: Sequence[Settings]) -> None:
    """UserError if --unlabelled is combined with a setting that needs a label of every image."""
    first = lanes[0]
    alone = dataset_dict.resolve(first.data.source.dataset) == "unlabelled"
    flag = "--dataset unlabelled" if alone else "--unlabelled"
    if first.data.unlabelled.eval_probe is not None and not alone:
        raise UserError(
            "--eval_probe evaluates a student of --dataset unlabelled, but another data set has test images: leave it "
            "out; eval_rep.py probes a trained student"
        )
    if first.data.unlabelled.unlabelled is None and not alone:
        return
    if first.data.mixing:
        raise UserError(f"--mixup, --cutmix and --label_smoothing need labels: leave them out, or {flag}")
    if alone and first.teacher.teacher_probe is not None:
        raise UserError("--teacher_probe fits a classifier to labels, and --dataset unlabelled has none: leave it out")
    if first.training.loop.accumulate > 1 and not alone:
        raise UserError("--unlabelled needs whole batches: leave --accumulate out")
    for lane in lanes:
        if lane.method.teacher_mode == "absent":
            raise UserError(f"--distill {lane.distill} learns from labels alone: leave {flag} out")
        if any(stage.needs_labels(lane.config) for stage in chain_of(lane.method)):
            raise UserError(
                f"--distill {lane.distill} reads the label of every image, but those of {flag} have none: choose "
                "a method that needs no labels, such as kd, dist or embed"
            )
        if alone and lane.config.cls:
            raise UserError("--dataset unlabelled has no labels for a cross-entropy: pass -c 0")


def open_teacher(lanes: Sequence[Settings], data: DataSet, device: torch.device) -> Network | None:
    """The teacher of --path_t, if a method needs one."""
    wanting = [lane for lane in lanes if lane.method.teacher_mode == "frozen"]
    settings = lanes[0].teacher
    if settings.path_t is None:
        if wanting:
            raise UserError(f"--distill {wanting[0].distill} needs a teacher: pass its checkpoint with --path_t")
        return None
    if not wanting:
        if online := [lane.distill for lane in lanes if lane.method.teacher_mode == "trained"]:
            raise UserError(
                f"--distill {online[0]} trains two peers that teach each other, and --path_t "
                f"{' '.join(settings.path_t)} would be ignored: leave it out"
            )
        return None
    log.info("==> loading teacher model")
    labelled = not isinstance(data, UnlabelledData)
    known = data.classes if labelled else None
    networks = [load_teacher(p, settings.model_t, known, data.shapes) for p in settings.path_t]
    if settings.teacher_probe is None and labelled:  # a probe replaces the classifier
        networks = [n if n.spec.headless else matched(n, data.classes, settings.match_classes) for n in networks]
    networks = [with_normalisation(n, settings.mean_t, settings.std_t, ("--mean_t", "--std_t")) for n in networks]
    networks = [with_view(n, settings.teacher_image_size, data.shapes) for n in networks]
    weights = None if settings.teacher_weight is None else tuple(settings.teacher_weight)
    if weights is not None and len(weights) != len(networks):
        raise UserError(f"--teacher_weight has {len(weights)} values, --path_t {len(networks)}")
    notices = ((*position_notice(n.spec, data.shapes), *evaluation_notice(n, data.shapes)) for n in networks)
    for notice in chain.from_iterable(notices):
        log.info(notice)
    log.info("==> done")
    if settings.teacher_probe is not None:
        folder = Path(lanes[0].run.save_root) / "teacher_probes"
        keep = not lanes[0].run.dry_run
        networks = [with_probe(n, settings.teacher_probe, data, folder, device, keep=keep) for n in networks]
    teacher = ensemble_of(networks, weights, all(lane.method.several_teachers for lane in wanting))
    for lane in wanting:
        refuse_headless(teacher, lane.distill, lane.method, lane.config)
    return teacher


def for_student(data: DataSet, teacher: Network | None, lanes: Sequence[Settings]) -> DataSet:
    """The data. If no image has a label, its classes are those of the student's outputs: the teacher's, if the student
    learns its logits; else a single one, so that the untrained classifier fits no data set."""
    if not isinstance(data, UnlabelledData):
        return data
    assert teacher is not None, "refuse_unlabelled() lets no method without a teacher pass"
    if not any(stage.needs_classifier(lane.config) for lane in lanes for stage in chain_of(lane.method)):
        return data.taught(["none"])
    networks = (teacher, *teacher.others)
    counts = {len(network.model.get_submodule(network.spec.head).weight) for network in networks}  # type: ignore[arg-type]
    if len(counts) > 1:
        raise UserError(
            f"the teachers of {teacher.name} have {' and '.join(map(str, sorted(counts)))} classes: give teachers with "
            "the same classes"
        )
    (count,) = counts
    names = teacher.checkpoint.meta.get("classes") or ()
    return data.taught(list(map(str, names if len(names) == count else range(count))))


def teacher_accuracy(opened: Opened) -> float | None:
    """Top-1 of the teacher in percent, None without one: evaluate it in float32 once, store the accuracy next to the
    runs, and compare it with the file's record."""
    teacher, data, settings = opened.teacher, opened.data, opened.lanes[0]
    if teacher is None:
        return None
    if settings.teacher.skip_validation:
        log.info("Skipping teacher validation.")
        return None
    if isinstance(data, UnlabelledData):
        log.info("teacher accuracy:  none, as the images have no labels")
        return None
    if teacher.spec.headless:
        log.info("teacher accuracy:  none, the teacher has no classifier (%s)", teacher.lacks)
        return None
    memory = Path(settings.run.save_root) / "teacher_accuracy.json"
    images = data.test_checksum or data.checksum
    shape = "x".join(map(str, data.shapes[teacher.spec.input]))
    key = f"{teacher.name} {teacher.checksum} {teacher.weights} on {data.name} {images} {shape}"
    known = distributed.by_main(lambda: remembered(memory, (int, float)))
    if key in known:
        acc = known[key]
        log.info("teacher accuracy:  %.2f (measured before)", acc)
    else:
        kernels = Kernels(channels_last=opened.hardware.kernels.channels_last)
        acc = accuracy_of(teacher, data, opened.hardware.device, kernels)
        log.info("teacher accuracy:  %.2f", acc)
        if machine.is_main():
            remember(known | {key: acc}, memory)
    flags = ("--mean_t", "--std_t", "--match_classes")
    if warning := near_chance(acc, data.num_classes, teacher.spec, data.shapes[teacher.spec.input], flags):
        log.info("%s", warning)
    recorded = None if teacher.others else teacher.checkpoint.best_acc
    if recorded is not None:
        log.info("recorded in %s: %.2f", teacher.checkpoint.path, recorded)
        if abs(recorded - acc) > teacher.checkpoint.rounding:
            log.info(
                "warning: measured and recorded teacher accuracy differ by %.2f points; check that data set, split "
                "and normalisation are those of its training",
                abs(recorded - acc),
            )
    return acc


def accuracy_of(teacher: Network, data: DataSet, device: torch.device, kernels: Kernels = PLAIN) -> float:
    """Top-1 in percent on the test images, in float32. The network keeps the memory order of `kernels`."""
    source = teacher.source(to_device(teacher.tapped(), device, kernels), device, None, kernels)
    unlabelled = torch.empty(0, dtype=torch.int64)

    def predict(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"teacher": source.features(Batch(inputs, unlabelled, unlabelled), ())["logits"]}

    return evaluate(predict, open_test(data, device), device)["teacher"]["acc"]


def augmented(settings: Settings, data: DataSet) -> bool:
    """Whether RandAugment changes batches on the device; data that is decoded as it is read augments itself."""
    return settings.data.stream.augment == "randaugment" and "image" in data.shapes and not data.streamed


def with_idle_flags(settings: Settings, data: DataSet, device: torch.device, has_teacher: bool) -> Settings:
    """The settings, naming the given flags that have no effect in this run; the log lists them in one line."""
    around = Around(
        dataset=settings.data.source.dataset,
        data=data,
        network=network_of(settings, data),
        distill=settings.distill,
        alone=settings.method.teacher_mode == "absent",
        own_term=settings.method.terms is not Distiller.terms,
        stages=len(chain_of(settings.method)),
        on_cpu=device.type == "cpu",
        processes=distributed.world_size(),
    )
    why = idle_in(settings.configs, around)  # every Config says it of its flags
    if "drop_path" in why and "drop_path" not in settings.given:
        log.info("--protocol modern: no drop path, as %s", why["drop_path"])
    if not has_teacher:
        why["path_t"] = f"--distill {settings.distill} uses no teacher"
    given = settings.given
    without_effect = {**settings.without_effect, **{k: reason for k, reason in why.items() if k in given}}
    if without_effect:
        log.info("without effect here: %s", "; ".join(f"--{k} ({v})" for k, v in without_effect.items()))
    if around.own_term and "+" not in settings.distill and not settings.is_teacher and settings.loss.beta == 0:
        log.info("the term of --distill %s has weight 0, so it has no effect: set its weight with -b", settings.distill)
    return dataclasses.replace(settings, without_effect=without_effect)


def notice_of_decays(lanes: Sequence[Settings]) -> None:
    """Warn that the learning rate never drops, if a short run has the decay epochs of a longer one."""
    cfg = lanes[0].training.schedule
    decays = parse_decay_epochs(cfg.lr_decay_epochs)
    moved = lanes[0].given & {"epochs", "lr_decay_epochs"}
    if moved and cfg.schedule == "step" and decays and decays[0] >= cfg.epochs:
        log.info(
            "note: training ends (--epochs %d) before the first learning-rate drop (--lr_decay_epochs %s): the "
            "learning rate stays at %s",
            *(cfg.epochs, cfg.lr_decay_epochs),
            " and ".join(dict.fromkeys(f"{lane.training.schedule.learning_rate:g}" for lane in lanes)),
        )


def network_of(settings: Settings, data: DataSet) -> ModelSpec:
    """The network to train; a name that means two networks is resolved by the size of the images."""
    return model_for(settings.model, data.shapes.get("image", ())).fitted(data.shapes)


def student_spec(settings: Settings, data: DataSet) -> ModelSpec:
    """The network to train, as changed by the settings."""
    spec = network_of(settings, data)
    if settings.network.drop_path is not None:
        spec = with_drop_path(spec, settings.network.drop_path) or spec
    if settings.network.pretrained is not None:
        spec = started_from(spec, settings.network.pretrained)
    if settings.machine.ranks.sync_bn and distributed.world_size() > 1:
        build_one = spec.build
        spec = dataclasses.replace(spec, build=lambda **k: distributed.sync_batch_norm(build_one(**k)))
    return spec


def shared_source(lanes: Sequence[Settings], teacher: Network, data: DataSet, hardware: Hardware) -> TeacherSource:
    """The teacher of all students of the process, through the cache if there is one.

    Behind a cache the teacher is not compiled, so that what the cache holds does not depend on it.
    """
    needs = [
        union_of_needs(s.method, s.config, student_spec(s, data), teacher.spec)
        for s in lanes
        if s.method.teacher_mode == "frozen"
    ]
    device, autocast, kernels = hardware.device, hardware.autocast, hardware.kernels
    cfg, dropout, mixing = lanes[0].cache, lanes[0].teacher.teacher_dropout, lanes[0].data.mixing
    taps = tuple(dict.fromkeys(tap for n in needs for tap in n.teacher))
    net = to_device(teacher.tapped(taps), device, kernels)

    def shared(source: TeacherSource) -> TeacherSource:
        return source if len(needs) == 1 else SharedTeacher(source, taps)

    if cfg:
        mixes = bool(mixing.mixup or mixing.cutmix) or augmented(lanes[0], data)
        refuse_unusable(cfg, teacher.by_features, dropout, mixes)
    if not cfg or lanes[0].run.dry_run or taps_outside_cache(cfg, taps, teacher.spec.headless):
        loop = lanes[0].training.loop
        full = -(-loop.batch_size // distributed.world_size() // loop.accumulate)
        source = teacher.source(net, device, autocast, kernels, full)
        if dropout:
            keep_dropout(source)
        return shared(source)
    source = teacher.source(net, device, autocast, dataclasses.replace(kernels, compile=None, parts=()))
    whole, layout = cache_layout(source, data, device, taps if teacher.spec.headless or cfg.cache_pooled else ())
    who = teacher.checksum + ("" if teacher.weights is None else f" {teacher.weights}")
    key = cache_key(who, whole.checksum, teacher.spec, autocast, kernels.fold_teacher, teacher.name)
    rebuild = cfg.rebuild_cache and machine.is_main()
    return shared(distributed.main_first(lambda: CachedTeacher(source, cfg, key, layout, device, rebuild)))
