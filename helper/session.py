"""The parts of a training session, in the order of train_student.py: open, build, enter, fit, finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from core import lock, machine
from core.files import refuse_folder, remember
from core.log import log, open_run_log
from core.protocols import DataSet, Loader, ModelSpec, Progress, TeacherSource, UserError
from dataset.images.unlabelled import UnlabelledData
from dataset.mixing import AugmentedLoader, MixedLoader
from distiller_zoo._task import union_of_needs
from distiller_zoo.base import Distiller
from helper.deploy.cost import deployed_parameters, macs
from helper.deploy.linear_probe import EvalProbe
from helper.evaluation.evaluate import open_test
from helper.machine import distributed
from helper.machine.kernels import Hardware, pick_kernels
from helper.machine.seeding import rank_seed, seed_everything
from helper.machine.stopper import Interrupted, Stopper
from helper.networks.load import Network, file_checksum, load_backbone, position_notice, size_notice
from helper.opening import (
    Opened,
    augmented,
    for_student,
    notice_of_decays,
    open_data,
    open_teacher,
    refuse_unlabelled,
    seed_of,
    setup,
    shared_source,
    student_spec,
    with_idle_flags,
)
from helper.options.naming import before_extension, folder_of
from helper.options.settings import Settings
from helper.runs.events import require_backend
from helper.runs.folder import RunFolder, file_name, rows_checksum, short_name_notice
from helper.runs.trackers import Reports, require_tracker
from helper.training.optim import optimizer
from helper.training.resume import LastState, chosen_state, state_to_resume
from helper.training.run import Lanes, TrainingRun, summary, train
from helper.training.stages import Stage, StagePlan, build_stages
from helper.training.step import StepSetup

LOST = "; the same command resumes from the last checkpoint; --dist_timeout sets how long to wait for a process"


@dataclass(frozen=True)
class Lane:
    """One student to train in this process: built and checked, nothing written yet."""

    settings: Settings
    folder: RunFolder
    described: dict[str, Any]
    run: TrainingRun
    stages: Iterator[Stage]
    notes: Sequence[str]
    chosen: LastState | None  # the state of --resume PATH or --extend


Entered = tuple[Lane, LastState | None]  # a lane whose folder is entered, and the state to resume from; None: start


def in_processes(first: Settings, work: Callable[[], object]) -> None:
    """Do the work in the requested processes; usually only this one."""

    def locked() -> None:
        try:
            work()
        finally:
            lock.release()

    distributed.in_processes(first.machine.launch, first.machine.device.gpu_id, first.command, locked, LOST)


def open_shared(lanes: Sequence[Settings]) -> Opened:
    """Device, data and teacher, for all students of the process."""
    settings = lanes[0]
    loop = settings.training.loop
    require_backend(settings.run.tb_backend)
    require_tracker(settings.configs.tracker)
    device, autocast = setup(settings)
    refuse_unlabelled(lanes)
    data = open_data(settings)
    teacher = None if settings.is_teacher else open_teacher(lanes, data, device)
    data = for_student(data, teacher, lanes)
    lanes = [with_idle_flags(lane, data, device, teacher is not None) for lane in lanes]
    notice_of_decays(lanes)
    loader: Loader = data.train_loader(
        loop.batch_size, seed=seed_of(settings), device=device, rank=machine.rank(), world_size=distributed.world_size()
    )
    if augmented(settings, data):
        stream = settings.data.stream
        loader = AugmentedLoader(
            loader, stream.augment_ops, stream.augment_magnitude, seed_of(settings), machine.rank()
        )
    if mixing := settings.data.mixing:
        if (mixing.mixup or mixing.cutmix) and "image" not in data.shapes:
            raise UserError(f"--mixup and --cutmix mix images, but {data.name} has none: leave them out")
        loader = MixedLoader(loader, data.num_classes, mixing, seed_of(settings), machine.rank())
    if distributed.world_size() > 1:
        log.info(
            "%d processes with %d samples of each batch each; losses over a batch use the samples of one process",
            distributed.world_size(),
            loop.batch_size // distributed.world_size(),
        )
    epochs = 0 if settings.run.dry_run else settings.training.schedule.epochs  # a dry run compiles only if asked to
    steps = min(len(loader), loop.max_steps or len(loader)) * epochs
    live = teacher is not None and not settings.cache
    kernels, notices = pick_kernels(settings.machine.kernels, device, steps, settings.teacher.fold_teacher, live)
    for notice in notices:
        log.info(notice)
    hardware = Hardware(device, autocast, kernels)
    source = None if teacher is None else shared_source(lanes, teacher, data, hardware)
    trial = loop.max_steps and loop.max_steps * loop.batch_size
    return Opened(lanes, data, loader, open_test(data, device, trial), teacher, source, hardware)


def try_out(lanes: Sequence[Lane], loader: Loader) -> None:
    """--dry_run: one batch through every student of the process. Writes no run."""
    loader.set_epoch(1)
    batch = next(iter(loader))
    for lane in lanes:
        refuse_folder(lane.folder.models, "run folder")
        for note in lane.notes:
            log.info(note)
        stage = next(lane.stages)
        stage.step.set_lr(lane.run.rate(stage, 1))
        stage.step.train()
        result = stage.step(batch, Progress(1, stage.epochs, 0, lane.run.steps, stage.index))
        terms = ", ".join(f"{name} {float(value):.4g}" for name, value in result.terms.items())
        log.info("dry run of %s: loss %.4g (%s)", lane.folder.models.name, float(result.loss), terms)


def build_lane(settings: Settings, opened: Opened) -> Lane:
    """Build networks, method and run of one student. All checks happen here, before anything is written."""
    data, teacher, source = opened.data, opened.teacher, opened.source
    if settings.method.teacher_mode != "frozen":
        teacher = source = None
    student = student_spec(settings, data)
    teacher_name = teacher.name if teacher else None
    folder = folder_of(settings, teacher_name)
    stages = build_chain(settings, opened, student, teacher, source)
    first = next(stages)
    start_backbone(settings, first, data.num_classes)
    seed = seed_of(settings)
    if machine.rank():  # networks start equal in all processes, later draws differ
        seed_everything(rank_seed(seed, machine.rank()))
        first.step.rng.manual_seed(rank_seed(seed, machine.rank()) + 1)
    spec_t = teacher.spec if teacher else None
    needs = union_of_needs(settings.method, settings.config, student, spec_t)
    if needs.full_batches:
        refuse_uneven_parts(settings)
    described = describe(settings, data, teacher, opened.hardware)
    run = build_run(settings, opened, folder, student, source, described["identity"], needs.full_batches)
    if (transforms := getattr(first.step.student.model, "transform_input", None)) is not None:
        run.meta = {**run.meta, "transform_input": transforms}
    refuse_idle(settings, first, run.steps)
    shorter = folder_of(before_extension(settings), teacher_name) if settings.run.extend is not None else None
    alone = len(opened.lanes) == 1
    chosen = chosen_state(settings.run, folder, shorter, run.identity, settings.off_default(), alone)
    notes = (
        [] if student.name == settings.model else [f"for images of this size, {settings.model} means {student.name}"]
    )
    notes += [
        *position_notice(student, data.shapes),
        *size_notice(student, data.shapes),
        *settings.method.notes(settings.config, student, spec_t),
    ]
    return Lane(settings, folder, described, run, chain([first], stages), notes, chosen)


def build_chain(
    settings: Settings, opened: Opened, student: ModelSpec, teacher: Network | None, source: TeacherSource | None
) -> Iterator[Stage]:
    """The stages of one student's training; see build_stages()."""
    training, hardware, seed = settings.training, opened.hardware, seed_of(settings)
    seed_everything(seed)  # a student's initial weights must not depend on what was built before it
    return build_stages(
        method=settings.method,
        cfg=settings.config,
        student=student,
        teacher=teacher,
        data=opened.data,
        setup=StepSetup(
            make_optimizer=optimizer(training.optim, training.schedule.learning_rate, hardware.kernels.fused_optimizer),
            device=hardware.device,
            autocast=hardware.autocast,
            accumulate=training.loop.accumulate,
            kernels=hardware.kernels,
            optim=training.optim,
            ema=training.ema,
            quantize=training.quantize,
        ),
        plan=StagePlan(
            batch_size=training.loop.batch_size // distributed.world_size(),
            epochs=training.schedule.epochs,
            init_epochs=training.schedule.init_epochs,
            seed=seed,
        ),
        source=source,
    )


def start_backbone(settings: Settings, first: Stage, num_classes: int) -> None:
    """--pretrained_backbone, and the rule that a frozen backbone needs one."""
    frozen = bool(settings.method_flags.get("freeze_backbone"))
    start = settings.pretrained_backbone
    if frozen and not start:
        raise UserError("--freeze_backbone does not train the backbone: give its weights with --pretrained_backbone")
    if start:
        load_backbone(first.step.student, start, num_classes, frozen)


def refuse_uneven_parts(settings: Settings) -> None:
    """UserError if a method needs micro-batches of one size and they differ."""
    loop, processes = settings.training.loop, distributed.world_size()
    if loop.batch_size // processes % loop.accumulate:
        raise UserError(
            f"--distill {settings.distill} needs micro-batches of one size: --batch_size {loop.batch_size}"
            f"{f' over {processes} processes' if processes > 1 else ''} is not a multiple of --accumulate "
            f"{loop.accumulate}"
        )


def build_run(
    settings: Settings,
    opened: Opened,
    folder: RunFolder,
    student: ModelSpec,
    source: TeacherSource | None,
    identity: Mapping[str, Any],
    full_batches: bool,
) -> TrainingRun:
    """The training of one student; see TrainingRun."""
    data, loader, probe = opened.data, opened.loader, None
    if isinstance(data, UnlabelledData):
        probe = EvalProbe(data.probe, data.head, data.shapes["image"][-1], opened.hardware.device)
    return TrainingRun(
        folder=folder,
        data=data,
        loader=loader,
        test_loader=opened.test_loader,
        hardware=opened.hardware,
        training=settings.training,
        meta={
            "arch": student.name,
            "num_classes": data.num_classes,
            "classes": list(map(str, data.classes)),
            "dataset": data.name,
            "val_fraction": settings.data.source.val_fraction,
            "val_dir": settings.data.source.val_dir,
            "classes_subset": settings.data.stream.classes_subset,
            "shapes": {k: list(shape) for k, shape in data.shapes.items() if k == "image"},
            **data.described,
        },
        identity=identity,
        tb_backend=settings.run.tb_backend,
        after_epoch=partial(end_of_epoch, [part.end_epoch for part in (source, loader) if part is not None]),
        full_batches=full_batches,
        probe=probe,
    )


def end_of_epoch(parts: Sequence[Callable[[], Mapping[str, Any]]]) -> dict[str, Any]:
    """Entries of teacher cache and loader for an epoch's row; counts are summed over all processes."""
    mine = {k: v for part in parts for k, v in part().items()}
    everybody = distributed.gather(mine)
    return {k: v if isinstance(v, float) else sum(one[k] for one in everybody) for k, v in mine.items()}


def enter_folders(lanes: Sequence[Lane], opened: Opened) -> list[Entered]:
    """Enter the folder of every run that is not finished yet."""
    entered = [enter(lane, opened, None if len(lanes) == 1 else lane.settings.label) for lane in lanes]
    return [one for one in entered if one is not None]


def enter(lane: Lane, opened: Opened, label: str | None) -> Entered | None:
    """Enter the run's folder; None if it is finished already."""
    folder, settings = lane.folder, lane.settings
    restarted = distributed.restarts() > 0  # restarted by an elastic launcher: always resume from the last state
    if distributed.by_main(
        lambda: folder.enter(lane.described, settings.run.overwrite and not restarted, settings.off_default())
    ):
        log.info("already finished: %s holds the result (--overwrite trains it again)", folder.models)
        return None
    if machine.is_main():
        lane.run.log = open_run_log(folder.log, label)
        if settings.configs.tracker.tracker != "none":
            lane.run.reports = Reports(settings.configs.tracker, folder, lane.described["settings"], lane.run.log)
    elif settings.machine.ranks.log_all_ranks:
        lane.run.log = open_run_log(folder.log.with_name(f"log_rank{machine.rank()}.txt"), label)
    precision = "bf16" if opened.hardware.autocast else "fp32"
    lane.run.log.info("run folder %s, %s on %s", folder.models, precision, opened.hardware.device)
    for note in lane.notes:
        lane.run.log.info(note)
    state = distributed.by_main(
        lambda: state_to_resume(lane.chosen, folder, lane.run.identity, settings.off_default(), restarted)
    )
    if state is not None:
        where = f"epoch {state['epoch'] + 1}" + (f", step {state['step'] + 1}" if state["step"] else "")
        lane.run.log.info("continuing from %s at %s", state.path, where)
    return lane, state


def fit(entered: Sequence[Entered], opened: Opened, stopper: Stopper) -> None:
    """Train until all students have ended, or raise Interrupted with the command that resumes."""
    log.info("==> training...")
    lanes = Lanes(len(entered), opened.hardware.device)
    try:
        for lane, state in entered:
            lanes.start(lane.run, lane.stages, state, stopper)
        train(lanes, opened.loader)
    except Interrupted as stop:
        raise resumable(stop, opened.lanes[0]) from None
    finally:
        lanes.close()


def resumable(stop: Interrupted, settings: Settings) -> Interrupted:
    """The same, with the command that resumes."""
    asked, rebuild = settings.run, settings.cache.rebuild_cache
    once = ["--overwrite"] * asked.overwrite + ["--resume"] * (asked.resume != "auto") + ["--rebuild_cache"] * rebuild
    command = f"the same command without {' and '.join(once)}" if once else "the same command"
    return Interrupted(f"{stop}; to resume, run {command}", stop.code)


def refuse_idle(settings: Settings, stage: Stage, steps: int) -> None:
    """UserError if all terms have weight 0, at the start or the end of training (weights may change over time)."""
    method, ends = stage.step.method, ((1, 0), (stage.epochs, steps - 1))
    weights = [method.weights(Progress(epoch, stage.epochs, step, steps, stage.index)) for epoch, step in ends]
    idle = {name for name in weights[0] if not any(w.get(name) for w in weights)}
    idle |= {"div"} if method.teacher_mode == "absent" else set()
    idle |= {m.name for m in method.each() if type(m).terms is Distiller.terms}
    if not weights[0].keys() - idle:
        raise UserError(f"every term of the loss of --distill {settings.distill} has weight 0: raise one of -c, -d, -b")


def describe(settings: Settings, data: DataSet, teacher: Network | None, hardware: Hardware) -> dict[str, Any]:
    """The content of args.json."""
    identity = settings.identity | {
        "precision": "bf16" if hardware.autocast else "fp32",
        "data": data.checksum,
        "test_data": data.test_checksum,
        "teacher": teacher.checksum if teacher else None,
    }
    if "dali" in settings.without_effect:
        identity.pop("dali")
    start = settings.pretrained_backbone
    if start and Path(start).is_file():
        identity["pretrained_backbone"] = file_checksum(start)
    return {
        "identity": identity,
        "settings": settings.as_dict(),
        "sources": settings.sources,
        "without_effect": settings.without_effect,
        "cpu_threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "seed": settings.run.seed,
        "command": settings.command,
        "kernels": asdict(hardware.kernels),
    }


def finish(lanes: Sequence[Lane], opened: Opened, teacher_acc: float | None) -> None:
    """Complete the folders of the runs that have ended."""
    names = [lane.folder.models.name for lane in lanes]
    for lane in lanes:
        if lane.run.ended and machine.is_main():
            complete(lane, opened, teacher_acc, names)
        if lane.run.reports is not None:
            lane.run.reports.close(lane.run.ended)


def complete(lane: Lane, opened: Opened, teacher_acc: float | None, together: Sequence[str]) -> None:
    """parameters.json marks the run as complete; a teacher also appears under its short name."""
    settings, folder, run, step = lane.settings, lane.folder, lane.run, lane.run.stage.step
    data, teacher, reached = opened.data, opened.teacher, run.reached
    uses_teacher = teacher is not None and settings.method.teacher_mode == "frozen"
    bare, deployed = deployed_parameters(step.student, step.method.deployment())
    facts = {
        "model_name": folder.models.name,
        "save_folder": str(folder.models),
        "tb_folder": str(folder.tensorboard),
        "Total params": bare / 1e6,
        "Deployed params": deployed / 1e6,
        "Deployed MACs": macs(step.deployed(bare=True), data.shapes, run.device) / 1e6,
        "arch_t": teacher.name if teacher is not None and uses_teacher else None,
        "evaluated_on": data.evaluated_on,
        "Total time": reached.seconds / 3600,
        "lanes": list(together),
        "num_classes": data.probe.num_classes if isinstance(data, UnlabelledData) else data.num_classes,
        "processes": distributed.world_size(),
        "teacher_acc": teacher_acc if uses_teacher else None,
        "rows": rows_checksum(reached.rows),
        "last": dict(reached.row),
        "best": {"test_acc": reached.best_acc, "epoch": reached.best_epoch},
    }
    remember(settings.as_dict() | facts, folder.finished)
    run.log.info(summary(reached, data.evaluated_on))
    run.log.info("result in %s", folder.models)
    if run.reports is not None:
        run.reports.result(table_row(settings, facts))
    if settings.is_teacher and settings.data.source.dataset in ("cifar100", "imagenet"):
        name = f"{file_name(settings.model)}_{settings.distill}"
        log.info(short_name_notice(folder.models.parent / name, folder))


def table_row(settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The run's row of a table, for a tracker. facts: as in parameters.json."""
    return {
        "method": settings.distill,
        "network": settings.model,
        "teacher": facts["arch_t"],
        "teacher_acc": facts["teacher_acc"],
        "last_epoch_acc": facts["last"]["test_acc"],
        "best_acc": facts["best"]["test_acc"],
        "best_epoch": facts["best"]["epoch"],
        "parameters_M": facts["Deployed params"],
        "MACs_M": facts["Deployed MACs"],
        "hours": facts["Total time"],
    }
