#!/usr/bin/env python3
"""Check that a refactoring changes no number: record fourteen short trainings before it, and check them after it.

python scripts/dev/record.py OUT.json [--only NAME ...]
python scripts/dev/record.py --check BEFORE.json [--only NAME ...]

They run through the command line of this repository, on the CPU with one thread, on data made here and with teachers
trained here for two steps. Of each, the file keeps the folder's name, every number of metrics.jsonl except timings, and
one digest for each part of the last state. On one machine with one version of torch, all of it is reproduced bit for
bit.
--check prints a line per training and exits with 1 if one differs. Takes three minutes on one core.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import ROOT
from helper.machine.program import ScriptParser, run_script
from tests.support.recordings import left_bright, utd, write_video

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
EXACT = "--precision fp32 --deterministic --compile none --seed 7 --num_workers 0 --tb_backend none"
DIGITS = f"{EXACT} --dataset digits --image_size 16 --batch_size 32"
LARGER = f"{EXACT} --dataset digits --image_size 32 --batch_size 16"
CLIPS = f"{EXACT} --image_size 32 --num_segments 2 --batch_size 3"
ACTIONS = f"{CLIPS} --dataset utd_mhad --data_folder utd --window 32 --clip_cache clips"
VIDEOS = f"{CLIPS} --dataset video --data_folder videos --short_side 32"
FIFTY = "--epochs 2 --max_steps 25 --lr_decay_epochs 1 --model_s resnet8"
TWENTY = "--epochs 2 --max_steps 10 --lr_decay_epochs 1"
FEW = "--epochs 5 --lr_decay_epochs 3"  # of four steps each
TEACHERS = {  # name -> arguments of train_teacher.py
    "resnet20": f"{DIGITS} --model resnet20",
    "resnet8_aux": f"{DIGITS} --model resnet8_aux --distill hsakd_teacher",
    "vit_micro_cifar": f"{LARGER} --model vit_micro_cifar",
    "trn:resnet8": f"{ACTIONS} --modality video --model trn:resnet8",
    "tsm:resnet14": f"{VIDEOS} --model tsm:resnet14",
}


@dataclass(frozen=True)
class Training:
    """A command of train_student.py. teacher: a name of TEACHERS, or none. alone: False for two processes."""

    argv: str
    teacher: str | None = "resnet20"
    alone: bool = True


TRAININGS = {
    "kd": Training(f"{DIGITS} {FIFTY} --distill kd"),
    "simkd": Training(f"{DIGITS} {FIFTY} --distill simkd"),
    "crd": Training(f"{DIGITS} {FIFTY} --distill crd --nce_k 64"),
    "semckd": Training(f"{DIGITS} {FIFTY} --distill semckd --clip_grad 5"),
    "ab": Training(f"{DIGITS} {FIFTY} --distill ab --init_epochs 1"),
    "kd+at": Training(f"{DIGITS} {FIFTY} --distill kd+at"),
    "lanes": Training(f"{DIGITS} {FIFTY} --distill kd,at"),
    "hsakd": Training(f"{DIGITS} {TWENTY} --model_s resnet8_aux --distill hsakd", "resnet8_aux"),
    "hsakd_online": Training(f"{DIGITS} {TWENTY} --model_s resnet8_aux --distill hsakd_online", None),
    "cakd": Training(
        f"{LARGER} {TWENTY} --model_s resnet8 --distill cakd --cakd_start 0 --cakd_every 2 --lr 0.001",
        "vit_micro_cifar",
    ),
    "dask": Training(
        f"{ACTIONS} {FEW} --modality_t video --modality_s accel --model_s sensor_cnn --distill dask", "trn:resnet8"
    ),
    "tsm": Training(f"{VIDEOS} {FEW} --model_s tsm:resnet8 --distill kd --frame_logits", "tsm:resnet14"),
    "options": Training(f"{DIGITS} {FIFTY} --distill kd --ema 0.9 --clip_grad 1 --mixup 0.2 --accumulate 2"),
    "two_processes": Training(f"{DIGITS} {FIFTY} --distill kd", alone=False),
}


def write_data(folder: Path) -> None:
    """Recordings of actions in utd/, and videos of two classes with their lists in videos/."""
    utd(folder / "utd")
    videos = folder / "videos"
    for i in range(15):
        frames = left_bright(8 + i % 3, i, (40, 48))
        write_video(videos / f"{i}.avi", frames[:, :, ::-1].copy() if i % 2 else frames)
    for name, part in (("train.txt", range(12)), ("test.txt", range(12, 15))):
        (videos / name).write_text("".join(f"{i}.avi {i % 2}\n" for i in part))


def run(script: str, argv: str, folder: Path, save_root: str) -> None:
    """RuntimeError with the end of what it said, if it fails."""
    command = [sys.executable, str(ROOT / script), *argv.split(), "--save_root", save_root]
    done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} {argv}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")


def in_two_processes() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f" --multiprocessing_distributed --dist_backend gloo --dist_url tcp://127.0.0.1:{port} --gpu_id 0,1"


def folders_of(save_root: Path, kind: str) -> list[Path]:
    """Of its runs, without the short names that point to them."""
    return sorted(p for p in (save_root / kind / "models").iterdir() if not p.is_symlink())


def teacher_file(name: str, folder: Path) -> Path:
    """Its last state; trained when first asked for."""
    root = folder / f"teacher_{name.replace(':', '_')}"
    if not root.exists():
        run("train_teacher.py", f"{TEACHERS[name]} --epochs 1 --max_steps 2", folder, root.name)
    (found,) = folders_of(root, "teachers")
    (path,) = found.glob("*_last.pth")
    return path


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in a nested state, keys in their order of sorting."""
    if isinstance(value, dict):
        members: Iterable[tuple[Any, Any]] = sorted(value.items(), key=lambda item: str(item[0]))
    elif isinstance(value, (list, tuple)):
        members = enumerate(value)
    else:
        yield path, value
        return
    for key, member in members:
        yield from leaves(member, f"{path}/{key}")


def digest(value: Any) -> str:
    """sha256 of a nested state: type, shape and bytes of tensors, repr of the rest."""
    sha = hashlib.sha256()
    for path, item in leaves(value):
        if isinstance(item, torch.Tensor):
            sha.update(f"{path} {item.dtype} {tuple(item.shape)}\n".encode())
            sha.update(item.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            sha.update(f"{path} {item!r}\n".encode())
    return sha.hexdigest()


def recorded(folder: Path) -> dict[str, Any]:
    """What is compared of a finished run."""
    (last,) = folder.glob("*_last.pth")
    state = torch.load(last, map_location="cpu", weights_only=True)
    parts = {"model": state["model"], "rng": [state["rng"], state.get("ranks")], **state["step_state"]}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "img_per_s")
    return {
        "folder": folder.name,
        "losses": [{k: repr(v) for k, v in row.items() if not any(t in k for t in timed)} for row in rows],
        "state": {name: digest(part) for name, part in parts.items()},
    }


def record(name: str, folder: Path) -> list[dict[str, Any]]:
    """Every run of a training: lanes are two."""
    training = TRAININGS[name]
    argv = training.argv
    if training.teacher:
        argv += f" --path_t {teacher_file(training.teacher, folder)}"
    if not training.alone:
        argv += in_two_processes()
    run("train_student.py", argv, folder, name)
    return [recorded(found) for found in folders_of(folder / name, "students")]


def check(name: str, before: dict[str, Any], folder: Path) -> str:
    """One line: 'identical', or what differs."""
    if name not in before:
        return "is not in the file"
    try:
        old, new = (dict(leaves(runs)) for runs in (before[name], record(name, folder)))
    except RuntimeError as error:
        return f"failed: {error}"
    found = [f"{path} {old.get(path)} -> {new.get(path)}" for path in old | new if old.get(path) != new.get(path)]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0]}{more}" if found else "identical"


def main(argv: Sequence[str] | None = None) -> int:
    parser = ScriptParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, help="file to write")
    parser.add_argument("--check", type=Path, metavar="BEFORE", help="file to compare with")
    parser.add_argument("--only", nargs="+", choices=TRAININGS, metavar="NAME", help=f"of {', '.join(TRAININGS)}")
    args = parser.parse_args(argv)
    if (args.out is None) == (args.check is None):
        parser.error("give either a file to write or --check with one to compare with")
    before = json.loads(args.check.read_text()) if args.check else {}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder)
        for name in args.only or TRAININGS:
            started = time.monotonic()
            results[name] = check(name, before, folder) if args.check else record(name, folder)
            said = results[name] if args.check else "recorded"
            print(f"{name}: {said} ({time.monotonic() - started:.0f} s)", flush=True)
    if args.check:
        return int(any(said != "identical" for said in results.values()))
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_script(main)
