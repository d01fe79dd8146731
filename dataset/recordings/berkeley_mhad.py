"""Berkeley MHAD (Ofli et al., WACV 2013): 11 actions of 12 people, 5 times each; 6 accelerometers, 12 cameras.

Anywhere below the data folder: acc_h{H}_s{S}_a{A}_r{R}.txt with rows `ax ay az time` (H: which Shimmer), and
Cluster{l}/Cam{c}/S{s}/A{a}/R{r}/img_l{l}_c{c}_s{s}_a{a}_r{r}_{i}.pgm, whose numbers i start at 0.
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
    "jumping in place",
    "jumping jacks",
    "bending, hands up all the way down",
    "punching",
    "waving two hands",
    "waving one hand",
    "clapping hands",
    "throwing a ball",
    "sit down then stand up",
    "sit down",
    "stand up",
)

SYMMETRIC = frozenset({0, 1, 2, 3, 4, 6, 8, 9, 10})
SHIMMERS = tuple(f"shimmer{i:02d}" for i in range(1, 7))
NAME = re.compile(r"acc_h(\d+)_s(\d+)_a(\d+)_r(\d+)$")
FOLDER = re.compile(r"Cluster(\d+)/Cam(\d+)/S(\d+)/A(\d+)/R(\d+)$", re.IGNORECASE)


def _key(action: int, subject: int, repetition: int, what: str) -> tuple[int, int, int]:
    if not (1 <= action <= len(CLASSES) and 1 <= subject <= 12 and 1 <= repetition <= 5):
        raise UserError(
            f"'{what}' names action {action}, subject {subject}, repetition {repetition}, which Berkeley MHAD does "
            "not have"
        )
    return action, subject, repetition


def find(root: Path, modality: str) -> list[Recording]:
    """All recordings of a modality: one file each, or one folder of frames per camera."""
    if modality == "video":
        return _clips(root)
    number = 1 if modality == "accel" else int(modality[-2:])  # or shimmer01 to shimmer06
    found = []
    for path in sorted(root.rglob(f"acc_h{number:02d}_*.txt")):
        match = NAME.match(path.stem)
        if match is not None:
            _, subject, action, repetition = map(int, match.groups())
            found.append(Recording(path, _key(action, subject, repetition, path.name), action - 1, subject))
    return found


def _clips(root: Path) -> list[Recording]:
    found = []
    for folder, parts, row in frame_folders(root, ".pgm"):
        match = FOLDER.search("/".join(parts))
        if match is None:
            if row is not None:
                raise UserError(f"{row.where}: '{row.folder}' is not Cluster{{l}}/Cam{{c}}/S{{s}}/A{{a}}/R{{r}}")
            continue
        cluster, camera, subject, action, repetition = map(int, match.groups())
        key = _key(action, subject, repetition, str(folder))
        if row is not None:
            row.require_label(action - 1)
        stem = f"img_l{cluster:02d}_c{camera:02d}_s{subject:02d}_a{action:02d}_r{repetition:02d}_"
        source = ClipSource(folder, stem + "{:05d}.pgm", 0, None if row is None else row.count)
        found.append(Recording(folder, key, action - 1, subject, f"cluster {cluster}, camera {camera}", source))
    return found


LAYOUT = Layout(
    "berkeley_mhad",
    CLASSES,
    {"accel": Modality(SENSOR), **{name: Modality(SENSOR) for name in SHIMMERS}, "video": Modality(VIDEO)},
    {"cross_subject": Protocol(lambda r: r.subject <= 7, "cross-subject (1 to 7 against 8 to 12)", by_subject=True)},
    find,
    SYMMETRIC,
    lambda key: f"action {key[0]}, subject {key[1]}, repetition {key[2]}",
)

load_berkeley_mhad = partial(load, LAYOUT)
