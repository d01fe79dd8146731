"""Names and folders of runs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from core.protocols import UserError
from distiller_zoo import published_names
from helper.options.settings import Settings
from helper.runs.folder import SEPARATOR, RunFolder, file_name, portable

LONGEST_NAME = 200  # bytes of a folder's name; most file systems allow 255


def run_name(settings: Settings, teacher: str | None) -> str:
    """The published template, then every other setting that is not at its default.

    teacher: architecture name; None: a student alone.
    """
    colon, dataset, trial, loss = SEPARATOR, settings.data.source.dataset, settings.run.trial, settings.loss
    if settings.is_teacher:
        name = f"{file_name(settings.model)}_{settings.distill}_{dataset}_trial_{trial}"
    else:
        name = (
            f"S{colon}{file_name(settings.model)}_T{colon}{file_name(teacher or 'none')}_{dataset}_"
            f"{published_name(settings.distill)}_r{colon}{loss.cls}_a{colon}{loss.div}_b{colon}{loss.beta}_{trial}"
        )
    dali = settings.data.stream.dali
    if dali and "dali" not in settings.without_effect:
        name += f"_dali{colon}{dali}"
    for key, value in settings.off_default().items():
        name += f"_{key}{colon}{','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
    name = name.replace("/", "-")
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        kept = name.encode()[: LONGEST_NAME - 13].decode(errors="ignore")  # a character that is cut in two is dropped
        name = f"{kept}_{digest}"
    return name


def published_name(distill: str) -> str:
    """The method's name in run folders: fitnet -> hint, kd+at -> kd+attention."""
    return "+".join(published_names.get(part, part) for part in distill.split("+"))


def before_extension(settings: Settings) -> Settings:
    """The settings of the finished run that --extend prolongs. UserError if --extend is not below --epochs."""
    configs, epochs = settings.configs, settings.run.extend
    schedule = configs.training.schedule
    assert epochs is not None
    if epochs >= schedule.epochs:
        raise UserError(
            f"--extend {epochs} is the number of epochs of the finished run: it must be below --epochs "
            f"{schedule.epochs}"
        )
    shorter = replace(configs.training, schedule=replace(schedule, epochs=epochs))
    return replace(
        settings, configs=replace(configs, run=replace(configs.run, extend=None, overwrite=False), training=shorter)
    )


def folder_of(settings: Settings, teacher: str | None) -> RunFolder:
    """The run's folder: --name, or the spelling of --run_names; if the run exists in the other spelling, that one."""
    root = Path(settings.run.save_root) / ("teachers" if settings.is_teacher else "students")
    name = settings.run.name or run_name(settings, teacher)
    spellings = [(name, settings.model), (portable(name), portable(settings.model))]
    if settings.run.run_names == "portable":
        spellings.reverse()
    if settings.run.name:
        spellings = [(name, spellings[0][1])]
    there = [pair for pair in spellings if (root / "models" / pair[0] / "args.json").exists()]
    name, network = (there or spellings)[0]
    return RunFolder(root / "models" / name, root / "tensorboard" / name, network)
