"""One training session behind both scripts: parse -> build -> fit -> finish."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset import dataset_dict
from dataset.base import DataOptions
from distiller_zoo.base import Combined, Distiller
from helper import build
from helper.checkpoint import atomic_write_json
from helper.cost import deployed_parameters, macs
from helper.loops import Fit, Interrupted, evaluate, read_last, summary
from helper.options import Settings, parse
from helper.protocols import Batch, DataSet, Progress, UserError
from helper.reporting import event_writer, log, log_to_file, require_backend, start_log
from helper.runs import RunFolder, link_short_name, refuse_differences, run_name
from helper.schedule import StepDecay, parse_decay_epochs
from helper.seeding import seed_everything
from models import model_for


def run_script(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> None:
    """Run an entry point. A user's error becomes one sentence and exit code 2; a bug keeps its traceback."""
    try:
        main(argv)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except Interrupted as stop:
        sys.exit(_fail(str(stop), stop.code))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _fail(message: str, code: int) -> int:
    log_to_file(message)
    print(message, file=sys.stderr)
    return code


def setup(settings: Settings) -> tuple[torch.device, torch.dtype | None]:
    """Device and precision, kernels and seeds."""
    device, notice = build.pick_device(settings.gpu_id)
    if notice:
        log.info(notice)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not settings.deterministic
    seed_everything(settings.seed)
    return device, build.pick_autocast(settings.precision, device)


def open_data(settings: Settings) -> DataSet:
    if settings.sources["data_folder"] == "default":
        with contextlib.suppress(OSError):  # the data set says what it misses, if it misses anything
            Path(settings.data_folder).mkdir(parents=True, exist_ok=True)  # a fresh clone downloads into it
    options = DataOptions(
        root=Path(settings.data_folder),
        image_size=settings.image_size,
        val_fraction=settings.val_fraction,
        few_ratio=settings.few_ratio,
        seed=settings.seed,
    )
    data = dataset_dict[settings.dataset](options)
    if settings.batch_size > len(data.train_labels):
        raise UserError(
            f"--batch_size {settings.batch_size} is larger than the training set ({len(data.train_labels)} samples)"
        )
    return data


def open_teacher(settings: Settings, data: DataSet) -> build.Network | None:
    """The teacher of --path_t, if the method wants one."""
    wants = settings.method.teacher_mode == "frozen"
    if settings.path_t is None:
        if wants:
            raise UserError(f"--distill {settings.distill} needs a teacher: pass its checkpoint with --path_t")
        return None
    if not wants:
        settings.without_effect["path_t"] = f"--distill {settings.distill} uses no teacher"
        return None
    log.info("==> loading teacher model")
    networks = [build.load_network(p, settings.model_t, data.num_classes, data.shapes) for p in settings.path_t]
    weights = None if settings.teacher_weight is None else tuple(settings.teacher_weight)
    if weights is not None and len(weights) != len(networks):
        raise UserError(f"--teacher_weight has {len(weights)} values, --path_t {len(networks)}")
    log.info("==> done")
    return dataclasses.replace(networks[0], others=tuple(networks[1:]), weights=weights)


def measure_teacher(teacher: build.Network, data: DataSet, device: torch.device, skip: bool) -> float | None:
    """Evaluate in float32 and compare with what the file says of itself."""
    if skip:
        log.info("Skipping teacher validation.")
        return None
    source = teacher.source(build.to_device(teacher.tapped(), device), device, None)
    unlabelled = torch.empty(0, dtype=torch.int64)

    def predict(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"teacher": source.features(Batch(inputs, unlabelled, unlabelled), ())["logits"]}

    acc = evaluate(predict, data.test_loader(500, device=device), device)["teacher"]["acc"]
    log.info("teacher accuracy:  %.2f", acc)
    recorded = None if teacher.others else teacher.checkpoint.best_acc
    if recorded is not None:
        log.info("recorded in %s: %.2f", teacher.checkpoint.path, recorded)
        if abs(recorded - acc) > 0.1:
            log.info(
                "warning: measured and recorded teacher accuracy differ by %.2f points; is this the data set, split "
                "and normalisation it was trained with?",
                abs(recorded - acc),
            )
    return acc


def notice_without_effect(settings: Settings, device: torch.device) -> None:
    """Name, in one line, the flags given that do nothing in this run."""
    given = {k for k, source in settings.sources.items() if source == "command line"}
    distill, alone = settings.values.get("distill"), settings.method.teacher_mode == "absent"
    why = {
        "num_workers": "the data is resident on the device",
        "dali": f"{settings.dataset} is resident on the device",
        "multiprocessing_distributed": "one process is enough for one device",
        "dist_url": "one process",
        "dist_backend": "one process",
        "world_size": "one process",
        "rank": "one process",
    }
    if len(build.chain_of(settings.method)) == 1:
        why["init_epochs"] = f"--distill {distill} has no first stage"
    if alone:
        why |= dict.fromkeys(("model_t", "skip_validation", "div", "kd_T"), f"--distill {distill} uses no teacher")
    elif not settings.values["div"]:
        why["kd_T"] = "the logit KL has weight 0"
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


def train(argv: Sequence[str] | None, *, is_teacher: bool) -> None:
    """The whole of train_teacher.py and train_student.py."""
    start_log()
    settings = parse(argv, teacher=is_teacher)
    require_backend(settings.tb_backend)
    device, autocast = setup(settings)
    data = open_data(settings)
    teacher = None if is_teacher else open_teacher(settings, data)
    name = settings.model if is_teacher else settings.model_s
    student = model_for(name, data.shapes.get("image", ()))
    notice_without_effect(settings, device)

    folder = folder_of(settings, teacher.name if teacher else None, is_teacher)
    schedule = StepDecay(settings.learning_rate, parse_decay_epochs(settings.lr_decay_epochs), settings.lr_decay_rate)
    stages = build.build_stages(
        settings.method,
        settings.config,
        student,
        teacher,
        data,
        batch_size=settings.batch_size,
        device=device,
        make_optimizer=build.sgd(settings.momentum, settings.weight_decay, settings.learning_rate),
        epochs=settings.epochs,
        init_epochs=settings.values.get("init_epochs", 0),
        init_seed=settings.seed,
        autocast=autocast,
        accumulate=settings.accumulate,
    )
    first = next(stages)  # builds the networks: whatever does not fit is refused before anything is written
    needs = build.union_of_needs(settings.method, settings.config, student, teacher.spec if teacher else None)
    if needs.full_batches and settings.batch_size % settings.accumulate:
        raise UserError(
            f"--distill {settings.distill} needs micro-batches of one size: --batch_size {settings.batch_size} is not "
            f"a multiple of --accumulate {settings.accumulate}"
        )
    described = describe(settings, data, teacher, autocast)
    fit = Fit(
        folder,
        data,
        device,
        schedule,
        partial(event_writer, settings.tb_backend, folder.tensorboard),
        {"arch": student.name, "num_classes": data.num_classes, "dataset": data.name},
        settings.batch_size,
        settings.seed,
        described["identity"],
        needs.full_batches,
        settings.print_freq,
        settings.max_steps,
    )
    refuse_idle(settings, first, fit.steps)
    chosen = None
    if settings.resume != "auto":
        chosen = read_last(settings.resume)
        refuse_differences(Path(settings.resume), chosen["identity"], fit.identity)

    if folder.enter(described, settings.overwrite):
        log.info("already finished: %s holds the result (--overwrite trains it again)", folder.models)
        return
    start_log(folder.log)
    log.info("run folder %s, %s on %s", folder.models, "bf16" if autocast else "fp32", device)
    for note in settings.method.notes(settings.config, student, teacher.spec if teacher else None):
        log.info(note)
    resume = find_resume(settings.resume, chosen, folder, described["identity"])
    teacher_acc = measure_teacher(teacher, data, device, settings.skip_validation) if teacher else None
    log.info("==> training...")
    try:
        row = fit.run(_chain(first, stages), resume)
    except Interrupted as stop:
        once = [f"--{name}" for name, given in (("overwrite", settings.overwrite), ("resume", chosen)) if given]
        command = f"the same command without {' and '.join(once)}" if once else "the same command"
        raise Interrupted(f"{stop}; {command} goes on from there", stop.code) from None
    finish(settings, folder, fit, row, data, teacher.name if teacher else None, teacher_acc, is_teacher)


def _chain(first: build.Stage, rest: Any) -> Any:
    yield first
    yield from rest


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
    resume: str, chosen: Mapping[str, Any] | None, folder: RunFolder, identity: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """The state to continue from, if any. chosen: that of --resume PATH, whose rows and best checkpoint come along."""
    if chosen is None and not folder.last.exists():
        return None
    path, state = (folder.last, read_last(folder.last)) if chosen is None else (Path(resume), chosen)
    refuse_differences(path, state["identity"], identity)
    if chosen is not None:
        folder.adopt(path.parent)
    where = f"epoch {state['epoch'] + 1}" + (f", step {state['step'] + 1}" if state["step"] else "")
    log.info("continuing from %s at %s", path, where)
    return state


def describe(
    settings: Settings, data: DataSet, teacher: build.Network | None, autocast: torch.dtype | None
) -> dict[str, Any]:
    """The content of args.json."""
    identity = settings.identity | {
        "precision": "bf16" if autocast else "fp32",
        "data": data.checksum,
        "teacher": "+".join(file_checksum(n.checkpoint.path) for n in (teacher, *teacher.others)) if teacher else None,
    }
    identity.pop("dali", None)
    return {
        "identity": identity,
        "settings": settings.as_dict(),
        "sources": settings.sources,
        "without_effect": settings.without_effect,
        "cpu_threads": torch.get_num_threads(),
        "seed": settings.seed,
        "command": settings.command,
    }


def file_checksum(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def finish(
    settings: Settings,
    folder: RunFolder,
    fit: Fit,
    row: Mapping[str, Any],
    data: DataSet,
    teacher: str | None,
    teacher_acc: float | None,
    is_teacher: bool,
) -> None:
    """parameters.json marks the run as complete; a teacher also appears under its short name."""
    stage = fit.stage
    bare, deployed = deployed_parameters(stage.step.student, stage.step.method)
    atomic_write_json(
        settings.as_dict()
        | {
            "model_name": folder.models.name,
            "save_folder": str(folder.models),
            "tb_folder": str(folder.tensorboard),
            "Total params": bare / 1e6,
            "Deployed params": deployed / 1e6,
            "Deployed MACs": macs(stage.step.deployed(), data.shapes, fit.device) / 1e6,
            "arch_t": teacher,
            "evaluated_on": getattr(data, "evaluated_on", "test"),
            "Total time": fit.seconds / 3600,
            "teacher_acc": teacher_acc,
            "last": {k: v for k, v in row.items()},
            "best": {"test_acc": fit.best_acc, "epoch": fit.best_epoch},
        },
        folder.finished,
    )
    log.info(summary(row, fit.best_acc, fit.best_epoch, fit.seconds))
    log.info("result in %s", folder.models)
    if is_teacher and settings.dataset in ("cifar100", "imagenet"):
        link = link_short_name(folder.models.parent, settings.model, folder)
        if link is None:
            log.info("no link %s_vanilla could be made here", settings.model)
        elif link.resolve() == folder.models.resolve():
            log.info("also reachable as %s", link)
        else:
            log.info("%s is another run or file and stays as it is", link)
