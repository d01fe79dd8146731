"""Lists of videos: one line per clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import read_text
from core.protocols import UserError
from dataset.clips.decode import ClipSource
from dataset.images.files import a_few, files_below

LARGEST_LABEL = 99_999  # a larger label is a mistake, and would create as many classes


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a list in UTF-8, with or without a byte-order mark."""
    return read_text(path, what, "utf-8-sig").splitlines()


def check_label(where: str, label: int) -> None:
    if label < 0:
        raise UserError(f"{where}: the class {label} is negative: classes count from 0")
    if label > LARGEST_LABEL:
        raise UserError(f"{where}: the class {label} is above {LARGEST_LABEL}, the largest that a list may name")


@dataclass(frozen=True)
class ListRow:
    """One line of a published frame list: `<folder> <number of frames> <label>`."""

    folder: str
    count: int
    label: int
    where: str  # file and line, for messages

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the folder's path, in the notation of any system."""
        return tuple(part for part in self.folder.replace("\\", "/").split("/") if part)

    def below(self, root: Path) -> Path | None:
        """The folder on this machine: the longest end of the listed path that exists below root."""
        ends = (root.joinpath(*self.parts[i:]) for i in range(len(self.parts)))
        return next((path for path in ends if path.is_dir()), None)

    def require_label(self, label: int) -> None:
        """UserError if the list gives a recording another class than its name."""
        if self.label != label:
            raise UserError(
                f"{self.where}: '{self.folder}' is listed with label {self.label}, but its name means {label}: correct "
                "the list"
            )


def read_list(path: Path) -> list[ListRow]:
    """A frame list in the published format. A UserError names the file and line that does not parse."""
    rows = []
    lines = read_lines(path, "frame list")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields: list[Any] = line.rsplit(maxsplit=2)
        try:
            row = ListRow(fields[0], int(fields[1]), int(fields[2]), f"{path}, line {number}")
        except (IndexError, ValueError):
            raise UserError(
                f"{path}, line {number}: '{line.strip()[:80]}' is not of the form FOLDER FRAMES LABEL"
            ) from None
        check_label(row.where, row.label)
        if row.count < 1:
            raise UserError(f"{row.where}: a clip cannot have {row.count} frames: correct the list")
        rows.append(row)
    return rows


VIDEOS = frozenset(
    (".mp4", ".m4v", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".ts", ".3gp")
)
TEMPLATE = "img_{:05}.jpg"


@dataclass(frozen=True)
class Entry:
    """One clip of a list."""

    source: ClipSource
    label: int
    where: str  # file and line


def read_entries(path: Path, root: Path, template: str = TEMPLATE) -> list[Entry]:
    """The clips of a list. A UserError names the file and line that does not parse."""
    lines = read_lines(path, "list of videos")
    found = [
        _entry(line.strip(), root, template, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise UserError(f"the list '{path}' names no videos; expected lines of the form PATH LABEL")
    return found


def _entry(line: str, root: Path, template: str, where: str) -> Entry:
    """The label is the last field; of the fields before it, up to two numbers at the end count frames."""
    words = line.split()
    last = len(words)
    while last > 1 and _is_number(words[last - 1]):
        last -= 1
    name, numbers = " ".join(words[:last]), words[last:]
    if not 1 <= len(numbers) <= 3:
        raise UserError(
            f"{where}: '{line[:80]}' is not of the form PATH LABEL, FOLDER FRAMES LABEL or FOLDER OFFSET FRAMES LABEL"
        )
    *counts, label = map(int, numbers)
    check_label(where, label)
    if not counts:
        return Entry(ClipSource(root / name), label, where)
    if Path(name).suffix and (root / name).is_file():
        form = "FOLDER FRAMES LABEL" if len(counts) == 1 else "FOLDER OFFSET FRAMES LABEL"
        raise UserError(
            f"{where}: '{line[:80]}' has the form {form}, but '{name}' is a file; the line of a video is PATH LABEL"
        )
    offset, count = (0, counts[0]) if len(counts) == 1 else counts
    if count < 1:
        raise UserError(f"{where}: '{name}' has {count} frames; leave the line out or extract them again")
    return Entry(ClipSource(root / name, template, first=1 + offset, count=count), label, where)


def videos_below(folder: Path, label: int) -> list[Entry]:
    """Every video file of a tree in sorted order, all of one label. UserError where there is none."""
    found = files_below(folder, "--unlabelled", "video", lambda path: path.suffix.lower() in VIDEOS)
    return [Entry(ClipSource(path), label, str(path)) for path in found]


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) < 100


def describe_oddities(train: Sequence[Entry], test: Sequence[Entry], num_classes: int) -> str:
    """What is unusual about two lists, in one line; "" if nothing is."""
    used = {e.label for e in train}
    first = min(used) if used else 0
    found = []
    if first:
        found.append(f"training labels start at {first} instead of 0")
    if gaps := [c for c in range(first, num_classes) if c not in used]:
        found.append(f"no training clip has class {a_few(list(map(str, gaps)))}")
    if untested := used - {e.label for e in test}:
        found.append(f"{len(untested)} of {num_classes} classes have no test clip")
    if unseen := {e.label for e in test} - used:
        found.append(f"the test list has classes without a training clip ({a_few(list(map(str, sorted(unseen))))})")
    if len(used) == 1:
        found.append(f"all training clips have class {first}")
    for name, entries in (("training", train), ("test", test)):
        if twice := len(entries) - len({e.source for e in entries}):
            found.append(f"the {name} list names {twice} clips more than once")
    if shared := {e.source for e in train} & {e.source for e in test}:
        found.append(f"{len(shared)} clips are in both lists")
    return "; ".join(found)


def check_labels(entries: Sequence[Entry], num_classes: int) -> None:
    """UserError for the first class that is out of range."""
    for entry in entries:
        if entry.label >= num_classes:
            raise UserError(
                f"{entry.where}: the class {entry.label} is out of range, the data set has 0 to {num_classes - 1}"
            )


def require_files(entries: Sequence[Entry]) -> None:
    """UserError for the first clip that is missing or empty; its content is checked when it is read."""
    for entry in entries:
        path = entry.source.path
        try:
            empty = path.is_file() and not path.stat().st_size
            there = path.exists()
        except OSError as error:
            raise UserError(f"{entry.where}: cannot read '{path}': {error.strerror}") from error
        if not there or empty:
            what = "is empty (0 bytes)" if there else "does not exist"
            raise UserError(
                f"{entry.where}: the video '{path}' {what}; fetch it, or pass --skip_corrupt to leave it out"
            )
