"""One training session behind both scripts: parse -> build -> fit -> finish."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset import dataset_dict
from dataset.base import DataOptions
from dataset.mixing import MixedLoader
from distiller_zoo.base import Combined, Distiller
from helper import build, distributed
from helper.cache import CachedTeacher, cache_key
from helper.checkpoint import atomic_write_json
from helper.cost import deployed_parameters, macs
from helper.flags_video import DATA as VIDEO_DATA
from helper.kernels import Kernels, pick_kernels, tune_allocator
from helper.loops import Fit, Interrupted, Life, Stopper, drive, eval_batch, evaluate, rank_seed, read_last, summary
from helper.memory import LaneMemory, out_of_memory
from helper.options import Settings, parse_lanes
from helper.protocols import Batch, DataSet, Loader, ModelSpec, Progress, TeacherSource, UserError
from helper.reporting import event_writer, log, log_to_file, open_run_log, require_backend, start_log
from helper.runs import RunFolder, link_short_name, refuse_differences, run_name
from helper.schedule import make_schedule
from helper.seeding import rng_state, seed_everything
from helper.teacher import SharedTeacher, keep_dropout
from models import model_for

# what only data that is decoded as it is read knows
STREAMED = ("dali", "classes_subset", "skip_corrupt", "augment", "random_erase", "repeated_augmentation")
# flags that are about action recordings
RECORDINGS = ("modality", "modality_s", "modality_t", "data_split", "num_segments", "window", "clip_cache")


def run_script(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run an entry point. A user's error becomes one sentence and exit code 2; a bug keeps its traceback."""
    try:
        main(argv)
    except UserError as error:
        _end(_fail(error, 2))
    except Interrupted as stop:
        _end(_fail(stop, stop.code))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no memory left"
        _end(_fail(f"out of memory ({reason}): choose a smaller --batch_size, --image_size or network", 2))
    except KeyboardInterrupt:
        _end(_fail("interrupted", 130))
    else:
        _end(0)


def _end(code: int) -> None:
    if distributed.launched():
        distributed.leave(code)
    if code:
        sys.exit(code)


def _fail(message: Exception | str, code: int) -> int:
    log_to_file(str(message))
    if distributed.is_main():
        print(message, file=sys.stderr)
    elif isinstance(message, UserError):  # of this rank alone, perhaps
        if not isinstance(message, distributed.RankLost):
            distributed.wait_to_speak()
        print(f"[rank {distributed.rank()}] {message}", file=sys.stderr)
    return code


def setup(settings: Settings) -> tuple[torch.device, torch.dtype | None]:
    """Device and precision, kernels and seeds."""
    gpu_id, place = settings.gpu_id, distributed.local_rank()
    if settings.sources["gpu_id"] == "default" and place:
        gpu_id = ",".join(map(str, range(place + 1)))
    device, notice = build.pick_device(gpu_id, place)
    if notice:
        log.info(notice)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not settings.deterministic
    seed_everything(settings.seed)
    if settings.sync_bn and device.type != "cuda":
        raise UserError("--sync_bn exists on CUDA devices only: leave it out")
    tune_allocator()
    return device, build.pick_autocast(settings.precision, device)


def open_data(settings: Settings) -> DataSet:
    folder, made = Path(settings.data_folder), False
    if settings.sources["data_folder"] == "default" and not folder.exists():
        with contextlib.suppress(OSError):  # the data set says what it misses, if it misses anything
            folder.mkdir(parents=True)  # a fresh clone downloads into it
            made = True
    options = DataOptions(
        root=Path(settings.data_folder),
        image_size=settings.image_size,
        val_fraction=settings.val_fraction,
        few_ratio=settings.few_ratio,
        seed=settings.seed,
        num_workers=min(-(-settings.num_workers // distributed.local_world_size()), build.usable_cores()),
        **{k: getattr(settings, k) for k in STREAMED},
        modality=modalities(settings),
        data_split=settings.data_split,
        num_segments=settings.num_segments,
        window=settings.window,
        clip_cache=Path(settings.clip_cache),
        more={f.dest: settings.values[f.dest] for f in VIDEO_DATA},
    )
    try:
        data = distributed.main_first(lambda: dataset_dict[settings.dataset](options))  # rank 0 downloads
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless something was put there
    if settings.batch_size > len(data.train_labels):
        raise UserError(
            f"--batch_size {settings.batch_size} is larger than the training set ({len(data.train_labels)} samples)"
        )
    for note in getattr(data, "notes", ()):
        log.info(note)
    return data


def modalities(settings: Settings) -> tuple[str, ...]:
    """What is read of recordings of several modalities: by the network that is trained, then by its teacher."""
    named = [settings.values.get(flag) for flag in ("modality", "modality_s", "modality_t")]
    return tuple(dict.fromkeys(name for name in named if name is not None))


def open_teacher(lanes: Sequence[Settings], data: DataSet) -> build.Network | None:
    """The teacher of --path_t, if a method wants one."""
    wanting = [lane for lane in lanes if lane.method.teacher_mode == "frozen"]
    settings = lanes[0]
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
    networks = [build.load_network(p, settings.model_t, data.num_classes, data.shapes) for p in settings.path_t]
    weights = None if settings.teacher_weight is None else tuple(settings.teacher_weight)
    if weights is not None and len(weights) != len(networks):
        raise UserError(f"--teacher_weight has {len(weights)} values, --path_t {len(networks)}")
    for notice in chain.from_iterable(build.position_notice(n.spec, data.shapes) for n in networks):
        log.info(notice)
    log.info("==> done")
    return dataclasses.replace(networks[0], others=tuple(networks[1:]), weights=weights)


def measure_teacher(teacher: build.Network, data: DataSet, device: torch.device, settings: Settings) -> float | None:
    """Evaluate in float32 once, remember it beside the runs, and compare with what the file says of itself."""
    if settings.skip_validation:
        log.info("Skipping teacher validation.")
        return None
    memory = Path(settings.save_root) / "teacher_accuracy.json"
    images = getattr(data, "test_checksum", data.checksum)
    key = f"{teacher.name} {teacher.checksum} {teacher.weights} on {data.name} {images}"
    known = distributed.by_main(lambda: read_json(memory))
    if key in known:
        acc = known[key]
        log.info("teacher accuracy:  %.2f (measured before)", acc)
    else:
        acc = accuracy_of(teacher, data, device, settings.channels_last != "off")
        log.info("teacher accuracy:  %.2f", acc)
        if distributed.is_main():
            atomic_write_json(known | {key: acc}, memory)
    recorded = None if teacher.others else teacher.checkpoint.best_acc
    if recorded is not None:
        log.info("recorded in %s: %.2f", teacher.checkpoint.path, recorded)
        if abs(recorded - acc) > teacher.checkpoint.rounding:
            log.info(
                "warning: measured and recorded teacher accuracy differ by %.2f points; is this the data set, split "
                "and normalisation it was trained with?",
                abs(recorded - acc),
            )
    return acc


def accuracy_of(teacher: build.Network, data: DataSet, device: torch.device, channels_last: bool = True) -> float:
    """Top-1 in percent on the test images, in float32. channels_last: the memory order, which the network keeps."""
    kernels = Kernels(channels_last=channels_last)
    source = teacher.source(build.to_device(teacher.tapped(), device, channels_last), device, None, kernels)
    unlabelled = torch.empty(0, dtype=torch.int64)

    def predict(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"teacher": source.features(Batch(inputs, unlabelled, unlabelled), ())["logits"]}

    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = data.test_loader(eval_batch(device), device=device, **ranks)
    return evaluate(predict, loader, device)["teacher"]["acc"]


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # absent or damaged: nothing is remembered
        return {}


def notice_without_effect(settings: Settings, data: DataSet, device: torch.device) -> None:
    """Name, in one line, the flags given that do nothing in this run."""
    given = {k for k, source in settings.sources.items() if source == "command line"}
    distill, alone = settings.values.get("distill"), settings.method.teacher_mode == "absent"
    why = {}
    if not getattr(data, "streamed", False):
        why = dict.fromkeys(("num_workers", *STREAMED), f"{settings.dataset} is resident on the device")
    if not hasattr(data, "clip_views"):
        why |= {f.dest: f"{settings.dataset} is no list of videos" for f in VIDEO_DATA}
    else:
        why.pop("num_workers", None)
    if distributed.world_size() == 1:
        why["multiprocessing_distributed"] = "one process is enough for one device"
        why |= dict.fromkeys(
            ("dist_url", "dist_backend", "world_size", "rank", "dist_timeout", "sync_bn", "log_all_ranks"),
            "one process",
        )
    if "image" in data.shapes:
        why |= dict.fromkeys(RECORDINGS, f"{settings.dataset} holds no action recordings")
    else:
        why.pop("skip_corrupt", None)
    if len(build.chain_of(settings.method)) == 1:
        why["init_epochs"] = f"--distill {distill} has no first stage"
    if alone:
        no_teacher = ("model_t", "skip_validation", "div", "kd_T", "teacher_dropout")
        why |= dict.fromkeys(no_teacher, f"--distill {distill} uses no teacher")
    elif not settings.values["div"]:
        why["kd_T"] = "the logit KL has weight 0"
    if not settings.values.get("teacher_cache"):
        why |= dict.fromkeys(("cache_pooled", "cache_device", "rebuild_cache"), "there is no --teacher_cache")
    elif device.type == "cpu":
        why["cache_device"] = "the cache is mapped into memory"
    if settings.values["compile"] == "none":
        why["compile_parts"] = "nothing is compiled"
    if len(settings.values.get("path_t") or ()) < 2:
        why["teacher_weight"] = "there is no ensemble to weigh"
    if settings.method.terms is Distiller.terms:
        why["beta"] = f"--distill {distill} has no term of its own"
    settings.without_effect |= {k: reason for k, reason in why.items() if k in given}
    if settings.without_effect:
        log.info("without effect here: %s", "; ".join(f"--{k} ({v})" for k, v in settings.without_effect.items()))


def folder_of(settings: Settings, teacher: str | None, is_teacher: bool) -> RunFolder:
    root = Path(settings.save_root) / ("teachers" if is_teacher else "students")
    name = run_name(settings, teacher, is_teacher)
    return RunFolder(
        root / "models" / name, root / "tensorboard" / name, settings.model if is_teacher else settings.model_s
    )


@dataclass(frozen=True)
class Lane:
    """One student to be trained in this process, built and checked, nothing written yet."""

    settings: Settings
    folder: RunFolder
    described: dict[str, Any]
    fit: Fit
    stages: Iterator[build.Stage]
    notes: Sequence[str]
    chosen: Mapping[str, Any] | None  # the state of --resume PATH


def train(argv: Sequence[str] | None, *, is_teacher: bool) -> None:
    """The whole of train_teacher.py and train_student.py."""
    start_log()
    trials = parse_lanes(argv, teacher=is_teacher)
    settings = trials[0][0]
    wanted = distributed.wanted_launch(
        settings.multiprocessing_distributed,
        settings.gpu_id,
        settings.dist_url,
        settings.dist_backend,
        settings.world_size,
        settings.rank,
        settings.dist_timeout,
    )
    if wanted is not None:
        code = distributed.launch(wanted, settings.command, settings.dist_timeout)
        if code:
            raise SystemExit(code)
        return
    with distributed.joined(settings.dist_backend, settings.dist_timeout):
        for lanes in trials:
            start_log()
            train_together(lanes, is_teacher)


def train_together(lanes: Sequence[Settings], is_teacher: bool) -> None:
    """Students that share data order and teacher; usually one."""
    settings = lanes[0]
    require_backend(settings.tb_backend)
    device, autocast = setup(settings)
    data = open_data(settings)
    teacher = None if is_teacher else open_teacher(lanes, data)
    for lane in lanes:
        notice_without_effect(lane, data, device)
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = data.train_loader(settings.batch_size, seed=settings.seed, device=device, **ranks)
    if settings.mixup or settings.cutmix or settings.label_smoothing:
        mixing = (settings.mixup, settings.cutmix, settings.label_smoothing)
        loader = MixedLoader(loader, data.num_classes, *mixing, settings.seed, distributed.rank())
    if distributed.world_size() > 1:
        log.info(
            "%d processes, %d samples of each batch in each; losses over a batch see those of one process",
            distributed.world_size(),
            settings.batch_size // distributed.world_size(),
        )
    steps = min(len(loader), settings.max_steps or len(loader)) * settings.epochs
    kernels, notices = pick_kernels(settings.values, device, steps)
    for notice in notices:
        log.info(notice)
    source = None if teacher is None else shared_source(lanes, teacher, data, device, autocast, kernels)
    built = [
        build_lane(lane, teacher, data, loader, source, device, autocast, is_teacher, lanes, kernels) for lane in lanes
    ]

    if settings.dry_run:
        return try_out(built, loader)
    lives: dict[Fit, Life] = {}
    running: list[Lane] = []
    with Stopper().listening() as stopper:
        for lane in built:
            resume = enter(
                lane, label=None if len(built) == 1 else lane.settings.label, autocast=autocast, device=device
            )
            if resume is False:
                continue
            running.append(lane)
            lives[lane.fit] = lane.fit.life(lane.stages, resume, stopper)
        if not running:
            return
        teacher_acc = None
        if teacher:
            teacher_acc = measure_teacher(teacher, data, device, settings)
        log.info("==> training...")
        try:
            drive(lives, loader, LaneMemory(len(lives), device))
        except Interrupted as stop:
            once = [f"--{n}" for n, given in (("overwrite", settings.overwrite), ("resume", built[0].chosen)) if given]
            command = f"the same command without {' and '.join(once)}" if once else "the same command"
            raise Interrupted(f"{stop}; {command} goes on from there", stop.code) from None
        finally:
            for lane in running:
                if lane.fit.ended:
                    finish(lane, data, teacher, teacher_acc, is_teacher, [other.folder.models.name for other in built])


def try_out(lanes: Sequence[Lane], loader: Loader) -> None:
    """--dry_run: one batch through every student of the process. Writes no run."""
    loader.set_epoch(1)
    batch = next(iter(loader))
    for lane in lanes:
        stage = next(lane.stages)
        stage.step.set_lr(lane.fit.schedule(1) if stage.constant_lr is None else stage.constant_lr)
        stage.step.train()
        result = stage.step(batch, Progress(1, stage.epochs, 0, lane.fit.steps, stage.index))
        terms = ", ".join(f"{name} {float(value):.4g}" for name, value in result.terms.items())
        log.info("dry run of %s: loss %.4g (%s)", lane.folder.models.name, float(result.loss), terms)


def student_spec(settings: Settings, data: DataSet) -> ModelSpec:
    """What is trained; a name that means two networks is resolved by the size of the images."""
    name = settings.values.get("model") or settings.values["model_s"]
    spec = model_for(name, data.shapes.get("image", ())).fitted(data.shapes)
    if settings.pretrained is not None:
        spec = build.started_from(spec, settings.pretrained)
    if settings.sync_bn and distributed.world_size() > 1:
        build_one = spec.build
        spec = dataclasses.replace(spec, build=lambda **k: distributed.sync_batch_norm(build_one(**k)))
    return spec


def build_lane(
    settings: Settings,
    teacher: build.Network | None,
    data: DataSet,
    loader: Loader,
    source: TeacherSource | None,
    device: torch.device,
    autocast: torch.dtype | None,
    is_teacher: bool,
    lanes: Sequence[Settings],
    kernels: Kernels,
) -> Lane:
    """Networks, method and run of one student. Whatever does not fit is refused here, before anything is written."""
    if settings.method.teacher_mode != "frozen":
        teacher = source = None
    student = student_spec(settings, data)
    per_process = settings.batch_size // distributed.world_size()
    folder = folder_of(settings, teacher.name if teacher else None, is_teacher)
    seed_everything(settings.seed)  # a student starts the same whatever was built before it
    stages = build.build_stages(
        settings.method,
        settings.config,
        student,
        teacher,
        data,
        batch_size=per_process,
        device=device,
        make_optimizer=build.optimizer(
            "nesterov" if settings.nesterov else settings.optimizer,
            settings.momentum,
            settings.weight_decay,
            settings.learning_rate,
            settings.norm_weight_decay,
            kernels.fused_optimizer,
        ),
        clip=settings.clip_grad,
        ema=(settings.ema, settings.ema_every) if settings.ema else None,
        epochs=settings.epochs,
        init_epochs=settings.values.get("init_epochs", 0),
        init_seed=settings.seed,
        autocast=autocast,
        accumulate=settings.accumulate,
        wrap=distributed.ddp,
        source=None if source is None else lambda net: source,
        kernels=kernels,
        param_groups=settings.param_groups,
    )
    first = next(stages)
    if settings.values.get("freeze_backbone") and not settings.values.get("pretrained_backbone"):
        raise UserError("--freeze_backbone keeps a backbone as it is: name its weights with --pretrained_backbone")
    if start := settings.values.get("pretrained_backbone"):
        build.load_backbone(first.step.student, start, data.num_classes, bool(settings.values.get("freeze_backbone")))
    if distributed.rank():  # networks start alike everywhere, what is drawn from here on differs
        seed_everything(rank_seed(settings.seed, distributed.rank()))
        first.step.seed_rng(rank_seed(settings.seed, distributed.rank()) + 1)
    spec_t = teacher.spec if teacher else None
    needs = build.union_of_needs(settings.method, settings.config, student, spec_t)
    if needs.full_batches and per_process % settings.accumulate:
        raise UserError(
            f"--distill {settings.distill} needs micro-batches of one size: --batch_size {settings.batch_size}"
            f"{' over ' + str(distributed.world_size()) + ' processes' if distributed.world_size() > 1 else ''} is not "
            f"a multiple of --accumulate {settings.accumulate}"
        )
    described = describe(settings, data, teacher, autocast) | {"kernels": kernels.described()}
    cached = source.cache if isinstance(source, SharedTeacher) else None
    fit = Fit(
        folder,
        data,
        device,
        make_schedule(
            settings.schedule,
            settings.learning_rate,
            settings.epochs,
            settings.lr_decay_epochs,
            settings.lr_decay_rate,
            settings.warmup_epochs,
            settings.warmup_start,
            settings.lr_min,
        ),
        partial(event_writer, settings.tb_backend if distributed.is_main() else "none", folder.tensorboard),
        {
            "arch": student.name,
            "num_classes": data.num_classes,
            "dataset": data.name,
            "shapes": {k: list(shape) for k, shape in data.shapes.items() if k == "image"},
            **getattr(data, "described", {}),
        },
        settings.batch_size,
        loader,
        described["identity"],
        needs.full_batches,
        settings.print_freq,
        settings.max_steps,
        after_epoch=partial(end_of_epoch, [p.end_epoch for p in (cached, loader) if hasattr(p, "end_epoch")]),
        shown=settings is lanes[0] and distributed.is_main(),
        eval_autocast=None if settings.eval_precision == "fp32" else autocast,
        exact_last=settings.eval_precision == "auto",
    )
    fit.rng = rng_state()
    refuse_idle(settings, first, fit.steps)
    chosen = None
    if settings.resume != "auto":
        if len(lanes) > 1:
            raise UserError("--resume PATH belongs to one student: name a single --distill, or leave --resume out")
        chosen = distributed.by_main(lambda: read_last(settings.resume))
        refuse_differences(Path(settings.resume), chosen["identity"], fit.identity, settings.off_default())
        if settings.overwrite and Path(settings.resume).resolve().parent == folder.models.resolve():
            raise UserError(
                f"--overwrite would delete the rows and the best checkpoint that --resume {settings.resume} "
                "goes with: leave one of the two out"
            )
    notes = [*build.position_notice(student, data.shapes), *settings.method.notes(settings.config, student, spec_t)]
    return Lane(settings, folder, described, fit, chain([first], stages), notes, chosen)


def end_of_epoch(parts: Sequence[Callable[[], Mapping[str, Any]]]) -> dict[str, Any]:
    """What teacher cache and loader have to say in an epoch's row; counts are those of all processes together."""
    mine = {k: v for part in parts for k, v in part().items()}
    everybody = distributed.gather(mine)
    return {k: v if isinstance(v, float) else sum(one[k] for one in everybody) for k, v in mine.items()}


def enter(lane: Lane, label: str | None, autocast: torch.dtype | None, device: torch.device) -> Any:
    """Enter the run's folder: the state to continue from, None to start, False if it is finished already."""
    folder, settings = lane.folder, lane.settings
    restarted = distributed.restarts() > 0  # by an elastic launcher: on from the last state, whatever began it
    if distributed.by_main(lambda: folder.enter(lane.described, settings.overwrite and not restarted)):
        log.info("already finished: %s holds the result (--overwrite trains it again)", folder.models)
        return False
    if distributed.is_main():
        lane.fit.log = open_run_log(folder.log, label)
    elif settings.log_all_ranks:
        lane.fit.log = open_run_log(folder.log.with_name(f"log_rank{distributed.rank()}.txt"), label)
    lane.fit.log.info("run folder %s, %s on %s", folder.models, "bf16" if autocast else "fp32", device)
    for note in lane.notes:
        lane.fit.log.info(note)
    chosen = None if restarted and folder.last.exists() else lane.chosen
    identity = lane.described["identity"]
    return distributed.by_main(lambda: find_resume(settings.resume, chosen, folder, identity, lane.fit.log))


def shared_source(
    lanes: Sequence[Settings],
    teacher: build.Network,
    data: DataSet,
    device: torch.device,
    autocast: torch.dtype | None,
    kernels: Kernels,
) -> TeacherSource:
    """One teacher for all students of the process, through the cache if there is one.

    Behind a cache the teacher is not compiled, so that what the cache holds does not depend on it.
    """
    needs = [
        build.union_of_needs(s.method, s.config, student_spec(s, data), teacher.spec)
        for s in lanes
        if s.method.teacher_mode == "frozen"
    ]
    taps = tuple(dict.fromkeys(tap for n in needs for tap in n.teacher))
    net = build.to_device(teacher.tapped(taps), device, kernels.channels_last)
    folder = None if lanes[0].dry_run else lanes[0].teacher_cache
    if lanes[0].teacher_dropout and folder is not None:
        raise UserError("--teacher_dropout draws anew for every batch, which --teacher_cache cannot keep: drop one")
    kept = ("logits", "pooled") if lanes[0].cache_pooled else ("logits",)
    deeper = [tap for tap in taps if tap not in kept]
    if folder is None or deeper:
        if folder is not None:
            hint = " (--cache_pooled keeps it)" if deeper == ["pooled"] else ""
            log.info(
                "--teacher_cache holds %s; these methods read %s and run the teacher%s",
                " and ".join(kept),
                ", ".join(deeper),
                hint,
            )
        full = -(-lanes[0].batch_size // distributed.world_size() // lanes[0].accumulate)
        source, cache = teacher.source(net, device, autocast, kernels, full), None
        if lanes[0].teacher_dropout:
            keep_dropout(source)
    else:
        source = teacher.source(net, device, autocast, dataclasses.replace(kernels, compile=None, parts=()))
        if data.num_crops is None:
            raise UserError(f"--teacher_cache: {data.name} has no countable views to cache")
        layout = source_layout(source, teacher.spec, data, device, taps if lanes[0].cache_pooled else ())
        who = teacher.checksum + ("" if teacher.weights is None else f" {teacher.weights}")
        open_cache = partial(
            CachedTeacher,
            source,
            folder,
            cache_key(who, data.checksum, teacher.spec, autocast, kernels.fold_teacher, teacher.name),
            len(data.train_labels),
            data.num_crops,
            data.num_classes,
            layout["logits"][1],
            device,
            pooled=layout.get("pooled"),
            where=lanes[0].cache_device,
        )
        rebuild = lanes[0].rebuild_cache and distributed.is_main()
        source = cache = distributed.main_first(lambda: open_cache(rebuild))
    return SharedTeacher(source, taps, cache)


def source_layout(
    source: TeacherSource, spec: ModelSpec, data: DataSet, device: torch.device, taps: Sequence[str]
) -> dict[str, tuple[int, torch.dtype]]:
    """Tap -> (width, dtype) of it and of the logits, as the teacher computes them."""
    none = torch.zeros(2, dtype=torch.int64, device=device)
    noise = torch.rand(2, *data.shapes[spec.input], generator=torch.Generator().manual_seed(0))
    images = noise.to(device, memory_format=torch.channels_last) if noise.ndim == 4 else noise.to(device)
    features = source.features(Batch({spec.input: images}, none, none), taps)
    if any(v.ndim != 2 for v in features.values()):
        raise UserError(f"--cache_pooled: the pooled feature of {spec.name} is no vector, leave the flag out")
    return {k: (v.shape[1], v.dtype) for k, v in features.items()}


def refuse_idle(settings: Settings, stage: build.Stage, steps: int) -> None:
    """UserError where no term has a weight, at the start of training or at its end (weights may follow time)."""
    method, ends = stage.step.method, ((1, 0), (stage.epochs, steps - 1))
    weights = [method.weights(Progress(epoch, stage.epochs, step, steps, stage.index)) for epoch, step in ends]
    idle = {name for name in weights[0] if not any(w.get(name) for w in weights)}
    idle |= {"div"} if method.teacher_mode == "absent" else set()
    members = method.members.values() if isinstance(method, Combined) else [method]
    idle |= {m.name for m in members if type(m).terms is Distiller.terms}
    if not weights[0].keys() - idle:
        raise UserError(f"every term of the loss of --distill {settings.distill} has weight 0: raise one of -c, -d, -b")


def find_resume(
    resume: str,
    chosen: Mapping[str, Any] | None,
    folder: RunFolder,
    identity: Mapping[str, Any],
    logger: logging.Logger,
) -> Mapping[str, Any] | None:
    """The state to continue from, if any. chosen: that of --resume PATH, whose rows and best checkpoint come along."""
    if chosen is None and not folder.last.exists():
        return None
    path, state = (folder.last, read_last(folder.last)) if chosen is None else (Path(resume), chosen)
    refuse_differences(path, state["identity"], identity)
    if chosen is not None:
        folder.adopt(path.parent)
    where = f"epoch {state['epoch'] + 1}" + (f", step {state['step'] + 1}" if state["step"] else "")
    logger.info("continuing from %s at %s", path, where)
    return state


def describe(
    settings: Settings, data: DataSet, teacher: build.Network | None, autocast: torch.dtype | None
) -> dict[str, Any]:
    """The content of args.json."""
    identity = settings.identity | {
        "precision": "bf16" if autocast else "fp32",
        "data": data.checksum,
        "test_data": getattr(data, "test_checksum", None),
        "teacher": teacher.checksum if teacher else None,
    }
    if "dali" in settings.without_effect:
        identity.pop("dali")
    start = settings.values.get("pretrained_backbone")
    if start and Path(start).is_file():
        identity["pretrained_backbone"] = build.file_checksum(start)
    return {
        "identity": identity,
        "settings": settings.as_dict(),
        "sources": settings.sources,
        "without_effect": settings.without_effect,
        "cpu_threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "seed": settings.seed,
        "command": settings.command,
    }


def finish(
    lane: Lane,
    data: DataSet,
    teacher: build.Network | None,
    teacher_acc: float | None,
    is_teacher: bool,
    lanes: Sequence[str],
) -> None:
    """parameters.json marks the run as complete; a teacher also appears under its short name."""
    if not distributed.is_main():
        return
    settings, folder, fit, step = lane.settings, lane.folder, lane.fit, lane.fit.stage.step
    uses_teacher = teacher is not None and settings.method.teacher_mode == "frozen"
    bare, deployed = deployed_parameters(step.student, step.method)
    atomic_write_json(
        settings.as_dict()
        | {
            "model_name": folder.models.name,
            "save_folder": str(folder.models),
            "tb_folder": str(folder.tensorboard),
            "Total params": bare / 1e6,
            "Deployed params": deployed / 1e6,
            "Deployed MACs": macs(step.deployed(bare=True), data.shapes, fit.device) / 1e6,
            "arch_t": teacher.name if uses_teacher else None,
            "evaluated_on": getattr(data, "evaluated_on", "test"),
            "Total time": fit.seconds / 3600,
            "lanes": list(lanes),
            "num_classes": data.num_classes,
            "processes": distributed.world_size(),
            "teacher_acc": teacher_acc if uses_teacher else None,
            "last": dict(fit.last_row),
            "best": {"test_acc": fit.best_acc, "epoch": fit.best_epoch},
        },
        folder.finished,
    )
    fit.log.info(
        summary(fit.last_row, fit.best_acc, fit.best_epoch, fit.seconds, getattr(data, "evaluated_on", "test"))
    )
    fit.log.info("result in %s", folder.models)
    if is_teacher and settings.dataset in ("cifar100", "imagenet"):
        link = link_short_name(folder.models.parent, settings.model, folder, settings.distill)
        if link is None:
            log.info("no link %s_%s could be made here", settings.model, settings.distill)
        elif link.resolve() == folder.models.resolve():
            log.info("also reachable as %s", link)
        else:
            log.info("%s is another run or file and stays as it is", link)
