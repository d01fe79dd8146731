"""Lists of videos: one line per clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.files import read_text
from core.protocols import UserError, explained
from dataset.clips.decode import ClipSource
from dataset.images.files import a_few, files_below

LARGEST_LABEL = 99_999  # a larger label is a mistake, and would create as many classes


def check_label(where: str, label: int) -> None:
    if label < 0:
        raise UserError(f"{where}: the class {label} is negative: classes count from 0")
    if label > LARGEST_LABEL:
        raise UserError(f"{where}: the class {label} is above {LARGEST_LABEL}, the largest that a list may name")


@dataclass(frozen=True)
class ListRow:
    """One line of a list: a video or a folder of frames, then the label. offset: of the first frame. count: number of
    frames; None for a video. where: file and line, for messages."""

    folder: str
    offset: int
    count: int | None
    label: int
    where: str

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


def read_rows(path: Path, what: str, forms: str, numbers: range) -> list[ListRow]:
    """A UserError names the file and line that does not parse. forms: that a line may have; numbers: how many it may
    end with; the last is the label, those before it count frames."""
    lines = read_text(path, what, "utf-8-sig").splitlines()  # with or without a byte-order mark
    return [
        _row(line.strip(), f"{path}, line {number}", forms, numbers)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _row(line: str, where: str, forms: str, numbers: range) -> ListRow:
    words, count = line.split(), 0
    most = numbers[0] if len(numbers) == 1 else len(words)  # a name may end in a number only if it is clear where
    while count < min(len(words) - 1, most) and _is_number(words[-1 - count]):
        count += 1
    if count not in numbers:
        raise UserError(f"{where}: '{line[:80]}' is not of the form {forms}")
    *counts, label = map(int, words[-count:])
    check_label(where, label)
    if counts and counts[-1] < 1:
        raise UserError(f"{where}: a clip cannot have {counts[-1]} frames: correct the list")
    name, offset = line.rsplit(maxsplit=count)[0], counts[0] if len(counts) > 1 else 0
    return ListRow(name, offset, counts[-1] if counts else None, label, where)


def read_list(path: Path) -> list[ListRow]:
    """A frame list in the published format."""
    return read_rows(path, "frame list", "FOLDER FRAMES LABEL", range(2, 3))


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
    """The clips of a list."""
    forms = "PATH LABEL, FOLDER FRAMES LABEL or FOLDER OFFSET FRAMES LABEL"
    rows = read_rows(path, "list of videos", forms, range(1, 4))
    if not rows:
        raise UserError(f"the list '{path}' names no videos; expected lines of the form PATH LABEL")
    return [_entry(row, root / row.folder, template) for row in rows]


def _entry(row: ListRow, path: Path, template: str) -> Entry:
    if row.count is None:
        return Entry(ClipSource(path), row.label, row.where)
    if path.suffix and path.is_file():
        raise UserError(
            f"{row.where}: '{row.folder}' is a file, but a line with frames names a folder; the line of a video is "
            "PATH LABEL"
        )
    return Entry(ClipSource(path, template, first=1 + row.offset, count=row.count), row.label, row.where)


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
        found.append(f"no training clip has class {a_few(gaps)}")
    if untested := used - {e.label for e in test}:
        found.append(f"{len(untested)} of {num_classes} classes have no test clip")
    if unseen := {e.label for e in test} - used:
        found.append(f"the test list has classes without a training clip ({a_few(sorted(unseen))})")
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
        with explained(f"{entry.where}: cannot read '{path}'"):
            empty = path.is_file() and not path.stat().st_size
            there = path.exists()
        if not there or empty:
            what = "is empty (0 bytes)" if there else "does not exist"
            raise UserError(
                f"{entry.where}: the video '{path}' {what}; fetch it, or pass --skip_corrupt to leave it out"
            )
