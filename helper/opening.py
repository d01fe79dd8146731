"""Opens device, data, teacher and the source of teacher features, from the settings of a session."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from core import machine
from core.files import remember, remembered
from core.log import log
from core.machine import usable_cores
from core.option import flat
from core.protocols import Batch, DataSet, FullSet, Loader, ModelSpec, TeacherSource, UserError
from dataset import dataset_dict
from dataset.base import DataOptions
from dataset.clips.video import DATA as VIDEO_DATA
from dataset.images.unlabelled import with_unlabelled
from distiller_zoo._task import chain_of, union_of_needs
from distiller_zoo.base import Distiller
from helper.evaluation.evaluate import TestBatches, evaluate, near_chance, open_test
from helper.machine import distributed
from helper.machine.devices import own_device, pick_autocast, to_device
from helper.machine.kernels import Hardware, Kernels, tune_allocator
from helper.machine.seeding import seed_everything
from helper.networks.classes import matched
from helper.networks.head_probe import with_probe
from helper.networks.headless import load_teacher, refuse_headless, with_view
from helper.networks.load import (
    Network,
    evaluation_notice,
    joined,
    position_notice,
    started_from,
    with_normalisation,
)
from helper.networks.teacher_cache import CachedTeacher, CacheLayout, cache_key
from helper.networks.teacher_sources import SharedTeacher, keep_dropout
from helper.options.settings import Settings
from helper.training.schedule import parse_decay_epochs
from models import model_for

# flags only for data that is decoded while it is read
STREAMED = ("dali", "classes_subset", "skip_corrupt", "augment", "random_erase", "repeated_augmentation")


# flags only for action recordings
RECORDINGS = ("modality", "modality_s", "modality_t", "data_split", "num_segments", "window", "clip_cache")


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
    source, recordings = settings.data.source, settings.data.recordings
    folder, made = Path(source.data_folder), False
    if "data_folder" not in settings.given and not folder.exists():
        with contextlib.suppress(OSError):  # the data set reports missing files
            folder.mkdir(parents=True)  # a fresh clone downloads to it
            made = True
    options = DataOptions(
        root=folder,
        image_size=source.image_size,
        val_fraction=source.val_fraction,
        few_ratio=source.few_ratio,
        seed=seed_of(settings),
        num_workers=min(-(-source.num_workers // machine.local_world_size()), usable_cores()),
        **flat(settings.data.stream),
        modality=settings.modalities,
        data_split=recordings.data_split,
        num_segments=recordings.num_segments,
        window=recordings.window,
        clip_cache=Path(recordings.clip_cache),
        more=flat(settings.data.video),
    )
    try:
        data = distributed.main_first(lambda: dataset_dict[source.dataset](options))  # rank 0 downloads
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless something was put there
    if data.num_classes < 2:
        raise UserError(f"{data.name} has only one class, {data.classes[0]}: a classifier needs at least two")
    data = with_unlabelled(data, settings.data.unlabelled)
    if (size := settings.training.loop.batch_size) > len(data.train_labels):
        raise UserError(f"--batch_size {size} is larger than the training set ({len(data.train_labels)} samples)")
    for note in data.notes:
        log.info(note)
    return data


def refuse_unlabelled(lanes: Sequence[Settings]) -> None:
    """UserError if --unlabelled is combined with a setting that needs a label of every image."""
    first = lanes[0]
    if first.data.unlabelled.unlabelled is None:
        return
    if first.data.mixing:
        raise UserError("--mixup, --cutmix and --label_smoothing need labels: drop them, or --unlabelled")
    if first.training.loop.accumulate > 1:
        raise UserError("--unlabelled needs whole batches: drop --accumulate")
    for lane in lanes:
        if any(stage.needs_labels(lane.config) for stage in chain_of(lane.method)):
            raise UserError(
                f"--distill {lane.distill} reads the label of every image, but those of --unlabelled have none: choose "
                "a method that needs no labels, such as kd, dist or embed"
            )
        if lane.method.teacher_mode == "absent":
            raise UserError(f"--distill {lane.distill} learns only from labels: leave --unlabelled out")


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
        for lane in lanes:
            lane.without_effect["path_t"] = f"--distill {lane.distill} uses no teacher"
        return None
    log.info("==> loading teacher model")
    networks = [load_teacher(p, settings.model_t, data.classes, data.shapes) for p in settings.path_t]
    if settings.teacher_probe is None:  # which replaces the classifier
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
        networks = [with_probe(n, settings.teacher_probe, data, folder, device) for n in networks]
    teacher = joined(networks, weights, all(lane.method.several_teachers for lane in wanting))
    for lane in wanting:
        refuse_headless(teacher, lane.distill, lane.method, lane.config)
    return teacher


def teacher_accuracy(teacher: Network, data: DataSet, device: torch.device, settings: Settings) -> float | None:
    """Evaluate the teacher in float32 once, store the accuracy next to the runs, and compare it with the file's
    record."""
    if settings.teacher.skip_validation:
        log.info("Skipping teacher validation.")
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
        acc = accuracy_of(teacher, data, device, settings.machine.kernels.channels_last != "off")
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


def accuracy_of(teacher: Network, data: DataSet, device: torch.device, channels_last: bool = True) -> float:
    """Top-1 in percent on the test images, in float32. channels_last: the memory order, which the network keeps."""
    kernels = Kernels(channels_last=channels_last)
    source = teacher.source(to_device(teacher.tapped(), device, channels_last), device, None, kernels)
    unlabelled = torch.empty(0, dtype=torch.int64)

    def predict(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"teacher": source.features(Batch(inputs, unlabelled, unlabelled), ())["logits"]}

    return evaluate(predict, open_test(data, device), device)["teacher"]["acc"]


def notice_without_effect(settings: Settings, data: DataSet, device: torch.device) -> None:
    """Log, in one line, the given flags that have no effect in this run."""
    given = settings.given
    distill, alone = settings.distill, settings.method.teacher_mode == "absent"
    dataset, cache = settings.data.source.dataset, settings.cache.teacher_cache
    why = {}
    if not data.streamed:
        why = dict.fromkeys(("num_workers", *STREAMED), f"{dataset} is held on the device")
    if data.name in ("folder", "tinyimagenet"):  # decoded once, when they are opened
        why.pop("skip_corrupt", None)
    if not data.videos:
        why |= {f.dest: f"{dataset} is not a list of videos" for f in VIDEO_DATA}
    else:
        why.pop("num_workers", None)
    if distributed.world_size() == 1:
        why["multiprocessing_distributed"] = "one process is enough for one device"
        why |= dict.fromkeys(
            ("dist_url", "dist_backend", "world_size", "rank", "dist_timeout", "sync_bn", "log_all_ranks"),
            "one process",
        )
    if "image" in data.shapes:
        why |= dict.fromkeys(RECORDINGS, f"{dataset} holds no action recordings")
    else:
        why.pop("skip_corrupt", None)
    if len(chain_of(settings.method)) == 1:
        why["init_epochs"] = f"--distill {distill} has no first stage"
    if alone:
        no_teacher = (
            "model_t",
            "teacher_image_size",
            "teacher_probe",
            "mean_t",
            "std_t",
            "match_classes",
            "skip_validation",
            "div",
            "kd_T",
            "teacher_dropout",
        )
        why |= dict.fromkeys(no_teacher, f"--distill {distill} uses no teacher")
    elif not settings.loss.div:
        why["kd_T"] = "the logit KL has weight 0"
    if not cache:
        why |= dict.fromkeys(("cache_pooled", "cache_device", "rebuild_cache"), "there is no --teacher_cache")
    elif device.type == "cpu":
        why["cache_device"] = "the cache is mapped into memory"
    if settings.machine.kernels.compile == "none":
        why["compile_parts"] = "nothing is compiled"
    if settings.teacher.teacher_probe is not None:
        why["match_classes"] = "--teacher_probe replaces the classifier"
    if settings.data.unlabelled.unlabelled is None:
        why["label_ratio"] = "there is no --unlabelled"
    if len(settings.teacher.path_t or ()) < 2:
        why["teacher_weight"] = "there is no ensemble to weigh"
    if settings.method.terms is Distiller.terms:
        why["beta"] = f"--distill {distill} has no term of its own"
    settings.without_effect.update({k: reason for k, reason in why.items() if k in given})
    if settings.without_effect:
        log.info("without effect here: %s", "; ".join(f"--{k} ({v})" for k, v in settings.without_effect.items()))
    own_term = settings.method.terms is not Distiller.terms and "+" not in str(distill)
    if own_term and not settings.is_teacher and settings.loss.beta == 0:
        log.info("the term of --distill %s has weight 0, so it has no effect: set its weight with -b", distill)


def notice_of_decays(lanes: Sequence[Settings]) -> None:
    """Warn that the learning rate never drops, if a short run has the decay epochs of a longer one."""
    lines = []
    for s in lanes:
        cfg = s.training.schedule
        decays = parse_decay_epochs(cfg.lr_decay_epochs)
        moved = s.given & {"epochs", "lr_decay_epochs"}
        if moved and cfg.schedule == "step" and decays and decays[0] >= cfg.epochs:
            lines.append(
                f"note: training ends (--epochs {cfg.epochs}) before the first learning-rate drop (--lr_decay_epochs "
                f"{cfg.lr_decay_epochs}): the learning rate stays at {cfg.learning_rate:g}"
            )
    for line in dict.fromkeys(lines):
        log.info(line)


def student_spec(settings: Settings, data: DataSet) -> ModelSpec:
    """The network to train; a name that means two networks is resolved by the size of the images."""
    spec = model_for(settings.model, data.shapes.get("image", ())).fitted(data.shapes)
    if settings.network.pretrained is not None:
        spec = started_from(spec, settings.network.pretrained)
    if settings.machine.ranks.sync_bn and distributed.world_size() > 1:
        build_one = spec.build
        spec = dataclasses.replace(spec, build=lambda **k: distributed.sync_batch_norm(build_one(**k)))
    return spec


def shared_source(
    lanes: Sequence[Settings],
    teacher: Network,
    data: DataSet,
    hardware: Hardware,
) -> TeacherSource:
    """One teacher for all students of the process, through the cache if there is one.

    Behind a cache the teacher is not compiled, so that what the cache holds does not depend on it.
    """
    needs = [
        union_of_needs(s.method, s.config, student_spec(s, data), teacher.spec)
        for s in lanes
        if s.method.teacher_mode == "frozen"
    ]
    device, autocast, kernels = hardware.device, hardware.autocast, hardware.kernels
    cfg, dropout = lanes[0].cache, lanes[0].teacher.teacher_dropout
    taps = tuple(dict.fromkeys(tap for n in needs for tap in n.teacher))
    net = to_device(teacher.tapped(taps), device, kernels.channels_last)
    folder = None if lanes[0].run.dry_run else cfg.teacher_cache
    if teacher.by_features and folder is not None:
        raise UserError(
            "--teacher_cache stores one teacher's features, but --path_t names several: leave one of them out"
        )
    if dropout and folder is not None:
        raise UserError(
            "--teacher_dropout draws new values for every batch, which --teacher_cache cannot store: leave one of "
            "them out"
        )
    mixing = lanes[0].data.mixing
    if folder is not None and (mixing.mixup or mixing.cutmix):
        raise UserError(
            "--mixup and --cutmix make new images of every batch, which --teacher_cache cannot store: leave one of "
            "them out"
        )
    kept = ("pooled",) if teacher.spec.headless else ("logits", "pooled") if cfg.cache_pooled else ("logits",)
    deeper = [tap for tap in taps if tap not in kept]
    if folder is None or deeper:
        if folder is not None:
            hint = " (--cache_pooled stores it)" if deeper == ["pooled"] else ""
            log.info(
                "--teacher_cache stores %s, but these methods read %s, so the teacher runs%s",
                " and ".join(kept),
                ", ".join(deeper),
                hint,
            )
        loop = lanes[0].training.loop
        full = -(-loop.batch_size // distributed.world_size() // loop.accumulate)
        source, cache = teacher.source(net, device, autocast, kernels, full), None
        if dropout:
            keep_dropout(source)
    else:
        source = teacher.source(net, device, autocast, dataclasses.replace(kernels, compile=None, parts=()))
        if data.num_crops is None:
            raise UserError(
                f"--teacher_cache needs data with crop-and-flip views, but {data.name} has none: leave it out"
            )
        layout = source_layout(source, teacher.spec, data, device, taps if "pooled" in kept else ())
        who = teacher.checksum + ("" if teacher.weights is None else f" {teacher.weights}")
        whole = data.full or FullSet(data.checksum, len(data.train_labels), None)
        key = cache_key(who, whole.checksum, teacher.spec, autocast, kernels.fold_teacher, teacher.name)
        kept_layout = CacheLayout(whole.count, data.num_crops, *layout, whole.positions)
        open_cache = partial(CachedTeacher, source, cfg, key, kept_layout, device)
        rebuild = cfg.rebuild_cache and machine.is_main()
        source = cache = distributed.main_first(lambda: open_cache(rebuild))
    return SharedTeacher(source, taps, cache)


def source_layout(
    source: TeacherSource, spec: ModelSpec, data: DataSet, device: torch.device, taps: Sequence[str]
) -> tuple[int, torch.dtype, tuple[int, torch.dtype] | None]:
    """(width, dtype) of the teacher's logits and taps; for a teacher without a classifier, width 0 and taps in half
    precision."""
    none = torch.zeros(2, dtype=torch.int64, device=device)
    noise = torch.rand(2, *data.shapes[spec.input], generator=torch.Generator().manual_seed(0))
    images = noise.to(device, memory_format=torch.channels_last) if noise.ndim == 4 else noise.to(device)
    features = source.features(Batch({spec.input: images}, none, none), taps)
    if any(v.ndim != 2 for v in features.values()):
        raise UserError(f"--cache_pooled: the pooled feature of {spec.name} is not a vector: leave the flag out")
    half, pooled = torch.float16, features.get("pooled")
    if spec.headless:
        assert pooled is not None, "a method without logits and without taps"
        return 0, half, (pooled.shape[1], half)
    logits = features["logits"]
    return logits.shape[1], logits.dtype, None if pooled is None else (pooled.shape[1], pooled.dtype)
