"""Small action data sets in their published layouts, made of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

ACTIONS, SUBJECTS, TRIALS = (1, 2, 4), (1, 2, 3, 4), (1, 2)


def write_video(path: Path, frames: np.ndarray, codec: str = "mpeg4") -> None:
    """uint8 [T, H, W, 3]."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=15)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_inertial(path: Path, seed: int, samples: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"d_iner": np.random.default_rng(seed).normal(size=(samples, 6))})


def left_bright(frames: int, seed: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """A clip whose left half is bright and whose right half is dark, whatever else is in it."""
    clip = np.random.default_rng(seed).integers(0, 60, (frames, *size, 3), dtype=np.uint8)
    clip[:, :, : size[1] // 2] += 150
    return clip


def utd(root: Path, video: bool = True) -> Path:
    """Every recording of a few actions, subjects and trials; clips of 10 to 13 frames of 24 x 32 pixels."""
    for i, (a, s, t) in enumerate((a, s, t) for a in ACTIONS for s in SUBJECTS for t in TRIALS):
        write_inertial(root / "Inertial" / f"a{a}_s{s}_t{t}_inertial.mat", i)
        if video:
            write_video(root / "RGB" / f"a{a}_s{s}_t{t}_color.avi", left_bright(10 + i % 4, i))
    return root


def write_frames(folder: Path, template: str, first: int, count: int, size: int = 16) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.full((size, size + 4, 3), number % 256, dtype=np.uint8)
        grey = template.endswith(".pgm")
        Image.fromarray(pixels[..., 0] if grey else pixels).save(folder / template.format(number))


def berkeley(root: Path, subjects=(1, 7, 8), actions=(1, 2), cameras=((1, 1), (3, 2)), frames: int = 6) -> Path:
    for s in subjects:
        for a in actions:
            path = root / "Shimmer01" / f"acc_h01_s{s:02d}_a{a:02d}_r01.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = np.random.default_rng(100 * s + a).normal(size=(30, 3))
            path.write_text(
                "".join(f"{x:.6f} {y:.6f} {z:.6f} {1309539264 + i / 30:.6f}\n" for i, (x, y, z) in enumerate(rows))
            )
            for cluster, camera in cameras:
                folder = root / f"Cluster{cluster:02d}" / f"Cam{camera:02d}" / f"S{s:02d}" / f"A{a:02d}" / "R01"
                stem = f"img_l{cluster:02d}_c{camera:02d}_s{s:02d}_a{a:02d}_r01_"
                write_frames(folder, stem + "{:05d}.pgm", 0, frames)
    return root


def write_csv(path: Path, seed: int, samples: int = 30, header: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(seed).normal(size=(samples, 3))
    lines = [
        f"20180904_10:15:{i // 100:02d}.{i % 100:02d}0000,{x:.6f},{y:.6f},{z:.6f}" for i, (x, y, z) in enumerate(rows)
    ]
    path.write_text("\n".join(["timestamp,x,y,z"] * header + lines) + "\n")


def mmact(
    root: Path,
    subjects=(1, 16, 17),
    scenes=(1, 2),
    sessions=(1, 5),
    cams=(1, 4),
    actions=("carrying", "Carrying_light"),
) -> Path:
    """Sensors of watch and phone; frames in subjectNN/camC/sceneK/sessionM/ACTION."""
    for i, (s, k, m, action) in enumerate(
        (s, k, m, a) for s in subjects for k in scenes for m in sessions for a in actions
    ):
        place = f"scene{k}/session{m}"
        for folder in ("acc_watch_clip", "acc_phone_clip"):
            write_csv(root / folder / f"subject{s}" / place / f"{action.lower()}.csv", i, header=i % 2 == 0)
        for c in cams:
            write_frames(root / f"subject{s:02d}" / f"cam{c}" / place / action, "{:06d}.jpg", 1, 5)
    return root
