"""UTD-MHAD (Chen, Jafari and Kehtarnavaz, ICIP 2015): 27 actions of 8 people, 4 times each, 3 of them missing.

Files by name, anywhere below the data folder: a{A}_s{S}_t{T}_inertial.mat (50 Hz; right wrist for actions 1 to 21,
right thigh after), _color.avi, _depth.mat. A folder called depth_video holds depth renderings under the names of the
colour clips; a run on them reports this. UTD_rgb_{train,val}_list.txt, if present, list frame folders instead of
videos.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from core.protocols import UserError
from dataset.clips.decode import ClipSource
from dataset.clips.lists import ListRow
from dataset.recordings.actions import load
from dataset.recordings.pairs import SENSOR, VIDEO, Layout, Modality, Protocol, Recording, listed_folders

CLASSES = (
    "right arm swipe to the left",
    "right arm swipe to the right",
    "right hand wave",
    "two hand front clap",
    "right arm throw",
    "cross arms in the chest",
    "basketball shoot",
    "right hand draw x",
    "right hand draw circle clockwise",
    "right hand draw circle counter clockwise",
    "draw triangle",
    "bowling right hand",
    "front box",
    "baseball swing from right",
    "tennis right hand forehand swing",
    "arm curl two arms",
    "tennis serve",
    "two hand push",
    "right hand knock on door",
    "right hand catch an object",
    "right hand pick up and throw",
    "jogging in place",
    "walking in place",
    "sit to stand",
    "stand to sit",
    "forward lunge left foot forward",
    "squat two arms stretch out",
)

SYMMETRIC = frozenset({3, 5, 12, 15, 17, 21, 22, 23, 24, 26})  # actions without a side; others are never mirrored
NAME = re.compile(r"a(\d+)_s(\d+)_t(\d+)_(inertial|color|depth)$")
SUFFIX = {"inertial": ".mat", "color": ".avi", "depth": ".mat"}
KIND_OF = {"accel": "inertial", "gyro": "inertial", "inertial": "inertial", "video": "color", "depth": "depth"}
LISTS = ("UTD_rgb_{}_list.txt", "UTD_rgb_{}_list_subject_specific.txt")  # of cross_subject, of trial


def key_of(stem: str) -> tuple[int, int, int, str] | None:
    """(action, subject, trial, kind) of a published file name; UserError if the set has no such file."""
    match = NAME.match(stem)
    if match is None:
        return None
    action, subject, trial = map(int, match.groups()[:3])
    if not (1 <= action <= len(CLASSES) and 1 <= subject <= 8 and 1 <= trial <= 4):
        raise UserError(
            f"'{stem}' names action {action}, subject {subject}, trial {trial}, which UTD-MHAD does not have"
        )
    return action, subject, trial, match.group(4)


def find(root: Path, modality: str) -> list[Recording]:
    """All recordings of a modality below root, by file name, or by the frame lists if present."""
    kind = KIND_OF[modality]
    if kind == "color" and (listed := _listed(root)):
        return listed
    found = []
    for path in sorted(root.rglob(f"*_{kind}{SUFFIX[kind]}")):
        named = key_of(path.stem)
        if named is None:
            continue
        frames = None if kind == "inertial" else ClipSource(path)
        origin = "depth video" if path.parent.name == "depth_video" else ""
        found.append(Recording(path, named[:3], named[0] - 1, named[1], frames=frames, origin=origin))
    return found


def _listed(root: Path) -> list[Recording]:
    """Frame folders of the published lists, of either split; both hold the same 861."""
    for pattern in LISTS:
        paths = [root / pattern.format(part) for part in ("train", "val")]
        if not any(p.is_file() for p in paths):
            continue
        if missing := [p.name for p in paths if not p.is_file()]:
            raise UserError(
                f"'{root}' holds one of the two frame lists, but {missing[0]} is missing: add it or remove the other"
            )
        return [_listed_recording(folder, row) for folder, row in listed_folders(root, paths)]
    return []


def _listed_recording(folder: Path, row: ListRow) -> Recording:
    named = key_of(row.parts[-1])
    if named is None:
        raise UserError(f"{row.where}: '{row.folder}' is not named a{{A}}_s{{S}}_t{{T}}_color")
    row.require_label(named[0] - 1)
    frames = ClipSource(folder, "{:06d}.jpg", 1, row.count)
    return Recording(folder, named[:3], row.label, named[1], frames=frames)


PROTOCOLS = {
    "cross_subject": Protocol(
        lambda r: r.subject % 2 == 1, "cross-subject (1, 3, 5, 7 against 2, 4, 6, 8)", by_subject=True
    ),
    "trial": Protocol(lambda r: r.key[2] <= 2, "trial split (trials 1, 2 against 3, 4 of the same people)"),
}

LAYOUT = Layout(
    "utd_mhad",
    CLASSES,
    {
        "accel": Modality(SENSOR, 3),
        "gyro": Modality(SENSOR, 3),
        "inertial": Modality(SENSOR, 6),
        "video": Modality(VIDEO),
        "depth": Modality(VIDEO),
    },
    PROTOCOLS,
    find,
    SYMMETRIC,
    lambda key: f"action {key[0]}, subject {key[1]}, trial {key[2]}",
)

load_utd_mhad = partial(load, LAYOUT)
