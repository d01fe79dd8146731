"""One training session behind both scripts: parse -> build -> fit -> finish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from core import machine
from core.files import atomic_write_json
from core.log import log, open_run_log, start_log
from core.protocols import DataSet, Loader, Progress, TeacherSource, UserError
from dataset.mixing import MixedLoader
from distiller_zoo._combined import Combined
from distiller_zoo.base import Distiller
from helper.deploy.cost import deployed_parameters, macs
from helper.machine import distributed
from helper.machine.kernels import Kernels, pick_kernels
from helper.machine.lane_memory import LaneMemory
from helper.machine.seeding import rng_state, seed_everything
from helper.machine.stopper import Interrupted, Stopper
from helper.networks.load import Network, file_checksum, load_backbone, position_notice
from helper.networks.teacher_sources import SharedTeacher
from helper.opening import (
    measure_teacher,
    notice_of_decays,
    notice_without_effect,
    open_data,
    open_teacher,
    setup,
    shared_source,
    student_spec,
)
from helper.options.naming import folder_of
from helper.options.parse import parse_lanes
from helper.options.settings import Settings
from helper.runs.events import event_writer, require_backend
from helper.runs.folder import RunFolder, link_short_name, refuse_differences, who_has
from helper.training import optim
from helper.training import stages as build
from helper.training.lanes import drive
from helper.training.loops import Fit, Life, rank_seed, read_last, summary
from helper.training.schedule import make_schedule

LOST = "; the same command goes on from the last checkpoint, and --dist_timeout sets how long to wait for a process"


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
    distributed.in_processes(trials[0][0], trials[0][0].command, lambda: train_trials(trials, is_teacher), LOST)


def train_trials(trials: Sequence[Sequence[Settings]], is_teacher: bool) -> None:
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
    notice_of_decays(lanes)
    ranks = {"rank": machine.rank(), "world_size": distributed.world_size()}
    loader = data.train_loader(settings.batch_size, seed=settings.seed, device=device, **ranks)
    if settings.mixup or settings.cutmix or settings.label_smoothing:
        if (settings.mixup or settings.cutmix) and "image" not in data.shapes:
            raise UserError(f"--mixup and --cutmix mix images, and {data.name} holds none: leave them out")
        mixing = (settings.mixup, settings.cutmix, settings.label_smoothing)
        loader = MixedLoader(loader, data.num_classes, *mixing, settings.seed, machine.rank())
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
    for lane in built[1:]:  # workers that decode are there once, not for each
        lane.fit.test_loader = built[0].fit.test_loader

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
        stage.step.set_lr(lane.fit.rate(stage, 1))
        stage.step.train()
        result = stage.step(batch, Progress(1, stage.epochs, 0, lane.fit.steps, stage.index))
        terms = ", ".join(f"{name} {float(value):.4g}" for name, value in result.terms.items())
        log.info("dry run of %s: loss %.4g (%s)", lane.folder.models.name, float(result.loss), terms)


def build_lane(
    settings: Settings,
    teacher: Network | None,
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
        make_optimizer=optim.optimizer(
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
        load_backbone(first.step.student, start, data.num_classes, bool(settings.values.get("freeze_backbone")))
    if machine.rank():  # networks start alike everywhere, what is drawn from here on differs
        seed_everything(rank_seed(settings.seed, machine.rank()))
        first.step.seed_rng(rank_seed(settings.seed, machine.rank()) + 1)
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
        partial(event_writer, settings.tb_backend if machine.is_main() else "none", folder.tensorboard),
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
        shown=settings is lanes[0] and machine.is_main(),
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
    notes = [*position_notice(student, data.shapes), *settings.method.notes(settings.config, student, spec_t)]
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
    if machine.is_main():
        lane.fit.log = open_run_log(folder.log, label)
    elif settings.log_all_ranks:
        lane.fit.log = open_run_log(folder.log.with_name(f"log_rank{machine.rank()}.txt"), label)
    lane.fit.log.info("run folder %s, %s on %s", folder.models, "bf16" if autocast else "fp32", device)
    for note in lane.notes:
        lane.fit.log.info(note)
    chosen = None if restarted and folder.last.exists() else lane.chosen
    identity = lane.described["identity"]
    return distributed.by_main(lambda: find_resume(settings.resume, chosen, folder, identity, lane.fit.log))


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
    settings: Settings, data: DataSet, teacher: Network | None, autocast: torch.dtype | None
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
        identity["pretrained_backbone"] = file_checksum(start)
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
    teacher: Network | None,
    teacher_acc: float | None,
    is_teacher: bool,
    lanes: Sequence[str],
) -> None:
    """parameters.json marks the run as complete; a teacher also appears under its short name."""
    if not machine.is_main():
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
        else:
            log.info(who_has(link, folder))
