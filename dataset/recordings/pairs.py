"""Recordings of several modalities: pairs, and published splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.protocols import UserError
from dataset.clips.decode import ClipSource
from dataset.clips.lists import ListRow, read_list

VIDEO, SENSOR = "video", "sensor"  # entries of Batch.inputs


@dataclass(frozen=True)
class Recording:
    """One file (or folder of frames) of one modality.

    key: (action, subject, trial), or what identifies a performance in the data set. view: the camera, if a performance
    has several. origin: the kind of file in reports, if that is not the modality's name.
    """

    path: Path
    key: tuple[int, ...]
    label: int
    subject: int
    view: str = ""
    frames: ClipSource | None = None
    origin: str = ""


@dataclass(frozen=True)
class Sample:
    """One performance, seen by one camera, with its recordings by modality."""

    key: tuple[int, ...]
    label: int
    subject: int
    view: str
    files: Mapping[str, Recording]


@dataclass(frozen=True)
class Modality:
    """kind: "video" or "sensor", its entry of Batch.inputs. axes: of a sensor."""

    kind: str
    axes: int = 3


@dataclass(frozen=True)
class Protocol:
    """A published split. trains: whether a recording is for training. by_subject: no person may be on both sides.

    summary: its name in reports.
    """

    trains: Callable[[Recording], bool]
    summary: str
    by_subject: bool = False
    by_view: bool = False


@dataclass(frozen=True)
class Layout:
    """The description of a data set.

    find: (root, modality) -> its recordings. mirrored: classes whose mirror image is the same action; clips of other
    classes are never mirrored.
    """

    name: str
    classes: Sequence[str]
    modalities: Mapping[str, Modality]
    protocols: Mapping[str, Protocol]
    find: Callable[[Path, str], list[Recording]]
    mirrored: frozenset[int] = frozenset()
    describe_key: Callable[[tuple[int, ...]], str] = str


def pair(
    found: Mapping[str, Sequence[Recording]], required: str, skip_corrupt: bool, trains: Callable[[Recording], bool]
) -> tuple[list[Sample], list[str]]:
    """Join recordings of one performance: (samples in the order of their keys, recordings that were left out).

    Each view of a performance is a sample. All samples need the modality `required`; test samples may lack the others.
    UserError for a recording without its counterpart, or two recordings of one performance.
    """
    tables: dict[str, dict[tuple[tuple[int, ...], str], Recording]] = {}
    for modality, recordings in found.items():
        table = tables[modality] = {}
        for r in recordings:
            twice = table.setdefault((r.key, r.view), r)
            if twice is not r:
                raise UserError(
                    f"two {modality} recordings of one performance: '{twice.path}' and '{r.path}'; keep one of them"
                )
    views = {(key, view) for table in tables.values() for key, view in table}
    seen = {key for key, view in views if view}
    wanted = sorted(v for v in views if v[1] or v[0] not in seen)  # each view is a separate sample
    tested = {m: any(not trains(r) for r in recordings) for m, recordings in found.items()}
    samples, left_out = [], []
    for key, view in wanted:
        files = {}
        for modality, table in tables.items():
            recording = table.get((key, view)) or table.get((key, ""))
            if recording is not None:
                files[modality] = recording
        one = next(iter(files.values()))
        missing = [m for m in found if m not in files and (m == required or trains(one) or tested[m])]
        labels = {m: r.label for m, r in files.items()}
        if len(set(labels.values())) > 1:
            summary = " and ".join(f"'{r.path}' ({r.label})" for r in files.values())
            raise UserError(f"recordings of one performance have different labels: {summary}; correct the list")
        if not missing:
            samples.append(Sample(key, one.label, one.subject, view, files))
            continue
        other = twin_name(found[missing[0]], one)
        message = f"'{one.path}' has no counterpart: the {missing[0]} recording {other} is missing"
        if not skip_corrupt:
            raise UserError(f"{message}; add it, or pass --skip_corrupt to leave such recordings out")
        left_out.append(message)
    return samples, left_out


def twin_name(others: Sequence[Recording], one: Recording) -> str:
    """The name of the missing file, derived from other names."""
    if not others:
        return f"of {one.key}"
    pattern = others[0]
    name = pattern.path.name
    if name.count("_") >= len(one.key):
        fields = name.split("_")
        changed = [
            f"{f[0]}{k:0{len(f) - 1}d}" if f[:1].isalpha() and f[1:] == f"{p:0{len(f) - 1}d}" else None
            for f, p, k in zip(fields, pattern.key, one.key, strict=False)
        ]
        if all(changed):
            return f"'{pattern.path.parent / '_'.join([*map(str, changed), *fields[len(changed) :]])}'"
    return f"of {one.key} {one.view}".rstrip()


def frame_folders(root: Path, suffix: str) -> list[tuple[Path, tuple[str, ...], ListRow | None]]:
    """(folder, parts of its path below root, its line in a list) of every folder of frames.

    Without lists in root, every folder below it that holds such files counts. UserError if a listed folder is missing.
    """
    out: list[tuple[Path, tuple[str, ...], ListRow | None]] = []
    if listed := listed_folders(root, sorted(root.glob("*list*.txt"))):
        return [(folder, row.parts, row) for folder, row in listed]
    for place, inner, files in os.walk(root, followlinks=True):
        inner.sort()
        if any(name.endswith(suffix) for name in files):
            out.append((Path(place), Path(place).relative_to(root).parts, None))
    return out


def listed_folders(root: Path, lists: Sequence[Path]) -> list[tuple[Path, ListRow]]:
    """Every folder of some frame lists, and its line."""
    out = []
    for row in (row for path in lists for row in read_list(path)):
        folder = row.below(root)
        if folder is None:
            raise UserError(f"{row.where}: there is no folder '{row.folder}' below '{root}'; extract its frames there")
        out.append((folder, row))
    return out


def check_split(train: Sequence[Sample], test: Sequence[Sample], protocol: Protocol, name: str) -> None:
    """UserError if a side is empty, or if a person is on both sides of a split by subject."""
    for side, samples in (("train on", train), ("test", test)):
        if not samples:
            raise UserError(
                f"--data_split {name} leaves no recording to {side}: does the data folder hold all subjects?"
            )
    both = {s.subject for s in train} & {s.subject for s in test}
    if protocol.by_subject and both:
        who = next(iter(both))
        names = [next(s for s in side if s.subject == who) for side in (train, test)]
        paths = " and ".join(f"'{next(iter(s.files.values())).path}'" for s in names)
        raise UserError(
            f"--data_split {name}: subject {who} is in both the training and the test set ({paths}); correct the list"
        )
