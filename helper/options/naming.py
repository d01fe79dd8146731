"""Names of runs and where their folders lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

from distiller_zoo import published_names
from helper.options.settings import Settings
from helper.runs.folder import SEPARATOR, RunFolder, file_name

LONGEST_NAME = 200  # bytes of a folder's name; most file systems end at 255


def run_name(settings: Settings, teacher: str | None, is_teacher: bool) -> str:
    """The published template, then every setting that is off its default and not in the template.

    teacher: architecture name, None for a student alone.
    """
    colon = SEPARATOR
    if is_teacher:
        name = f"{file_name(settings.model)}_{settings.distill}_{settings.dataset}_trial_{settings.trial}"
    else:
        name = (
            f"S{colon}{file_name(settings.model_s)}_T{colon}{file_name(teacher or 'none')}_{settings.dataset}_"
            f"{published_name(settings.distill)}_r{colon}{settings.cls}_a{colon}{settings.div}_b{colon}{settings.beta}"
            f"_{settings.trial}"
        )
    if settings.dali and "dali" not in settings.without_effect:
        name += f"_dali{colon}{settings.dali}"
    for key, value in settings.off_default().items():
        name += f"_{key}{colon}{','.join(map(str, value)) if isinstance(value, list) else value}"
    name = name.replace("/", "-")
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        kept = name.encode()[: LONGEST_NAME - 13].decode(errors="ignore")  # a cut through a character loses it
        name = f"{kept}_{digest}"
    return name


def published_name(distill: str) -> str:
    """The spelling run folders use: fitnet -> hint, kd+at -> kd+attention."""
    return "+".join(published_names.get(part, part) for part in distill.split("+"))


def folder_of(settings: Settings, teacher: str | None, is_teacher: bool) -> RunFolder:
    root = Path(settings.save_root) / ("teachers" if is_teacher else "students")
    name = run_name(settings, teacher, is_teacher)
    return RunFolder(
        root / "models" / name, root / "tensorboard" / name, settings.model if is_teacher else settings.model_s
    )
