"""MMAct (Kong et al., ICCV 2019): 36 actions of 20 people in 4 scenes and 5 sessions; 4 cameras, watch and phone.

Anywhere below the data folder: frames subjectNN/camC/sceneK/sessionM/ACTION/000001.jpg, and recordings
{acc_watch_clip,acc_phone_clip,gyro_clip,orientation_clip}/subjectN/sceneK/sessionM/ACTION.csv with rows
`timestamp,x,y,z`. Class 14 is part of the published numbering and has no recordings.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from core.protocols import UserError
from dataset.clips.decode import ClipSource
from dataset.recordings.actions import load
from dataset.recordings.pairs import SENSOR, VIDEO, Layout, Modality, Protocol, Recording, frame_folders

CLASSES = (
    "carrying",
    "carrying_heavy",
    "carrying_light",
    "checking_time",
    "closing",
    "crouching",
    "drinking",
    "entering",
    "exiting",
    "fall",
    "jumping",
    "kicking",
    "loitering",
    "looking_around",
    "object_transferring",
    "opening",
    "picking_up",
    "pocket_in",
    "pocket_out",
    "pointing",
    "pulling",
    "pushing",
    "running",
    "setting_down",
    "sitting",
    "sitting_down",
    "standing",
    "standing_up",
    "talking",
    "talking_on_phone",
    "throwing",
    "transferring_object",
    "using_pc",
    "using_phone",
    "walking",
    "waving_hand",
)

LABELS = {name: i for i, name in enumerate(CLASSES)} | {"transferring_(large_)object": 31, "object_transferring": 31}

FOLDERS = {
    "accel": "acc_watch_clip",
    "accel_phone": "acc_phone_clip",
    "gyro": "gyro_clip",
    "orientation": "orientation_clip",
}

PART = re.compile(r"(subject|cam|scene|session)_?(\d+)$", re.IGNORECASE)


def place_of(parts: tuple[str, ...]) -> dict[str, int]:
    """{"subject": 1, "cam": 2, ...} from the folders of a path."""
    return {m.group(1).lower(): int(m.group(2)) for m in map(PART.match, parts) if m is not None}


def label_of(action: str, where: str) -> int:
    """By name, ignoring case: the published lists give `Carrying_light` the wrong number 35."""
    label = LABELS.get(action.lower())
    if label is None:
        raise UserError(f"'{where}' names the action '{action}', which MMAct does not have")
    return label


def _recording(path: Path, parts: tuple[str, ...], action: str, frames: ClipSource | None) -> Recording | None:
    place = place_of(parts)
    if not {"subject", "scene", "session"} <= place.keys():
        return None
    label = label_of(action, str(path))
    key = (label, place["subject"], place["scene"], place["session"])
    view = f"cam {place['cam']}" if frames is not None and "cam" in place else ""
    return Recording(path, key, label, place["subject"], view, frames)


def find(root: Path, modality: str) -> list[Recording]:
    """All recordings of a modality: one .csv per performance, or one folder of frames per camera."""
    if modality == "video":
        return _clips(root)
    found = []
    for folder in sorted(p for p in root.rglob(FOLDERS[modality]) if p.is_dir()):
        for path in sorted(folder.rglob("*.csv")):
            recording = _recording(path, path.relative_to(folder).parts[:-1], path.stem, None)
            if recording is not None:
                found.append(recording)
    return found


def _clips(root: Path) -> list[Recording]:
    found = []
    for folder, parts, row in frame_folders(root, ".jpg"):
        source = ClipSource(folder, "{:06d}.jpg", 1, None if row is None else row.count)
        recording = _recording(folder, parts[:-1], parts[-1], source)
        if recording is None:
            continue
        spelled_right = parts[-1] == parts[-1].lower()
        if row is not None and spelled_right:
            row.require_label(recording.label)
        found.append(recording)
    return found


def _camera(r: Recording) -> int:
    return int(r.view.split()[-1]) if r.view else 0


LAYOUT = Layout(
    "mmact",
    CLASSES,
    {**{name: Modality(SENSOR) for name in FOLDERS}, "video": Modality(VIDEO)},
    {
        "cross_subject": Protocol(
            lambda r: r.subject <= 16, "cross-subject (1 to 16 against 17 to 20)", by_subject=True
        ),
        "cross_session": Protocol(lambda r: r.key[3] <= 4, "cross-session (1 to 4 against 5)"),
        "cross_view": Protocol(lambda r: _camera(r) <= 3, "cross-view (cameras 1 to 3 against 4)", by_view=True),
        "cross_scene": Protocol(lambda r: r.key[2] != 2, "cross-scene (1, 3, 4 against 2)"),
    },
    find,
    frozenset(),
    lambda key: f"{CLASSES[key[0]]}, subject {key[1]}, scene {key[2]}, session {key[3]}",
)

load_mmact = partial(load, LAYOUT)
