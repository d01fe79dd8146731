"""Commands that the toolbox should refuse, each with words of the sentence expected: what attack.py tries.

Numbers, choices and paths come from the parsers themselves, so that a new flag is tried without being listed here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from core.option import Flag
from distiller_zoo import method_dict
from helper.networks.checkpoint import load_file
from helper.options.method_flags import flags_of
from helper.options.settings import TrainStudentConfigs, common_flags

BRIEF = ("--epochs", 2, "--max_steps", 2, "--batch_size", 32, "--image_size", 8, "--tb_backend", "none")
NUMBERS: dict[Any, tuple[str, ...]] = {
    int: ("-1", "0", str(10**30), "x", ""),
    float: ("nan", "inf", "-1", "0", "1e300", "x", ""),
}
PATHS = ("missing", "folder", "zero", "cut", "foreign", "fifo", "device")


@dataclass(frozen=True)
class Wrong:
    """words: of the sentence. may_run: whether the value may also be accepted."""

    case: str
    script: str
    argv: tuple[object, ...]
    words: str
    may_run: bool = False


class Captured(BaseException):
    pass


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a script's main() makes."""

    def capture(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise Captured(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", capture), contextlib.suppress(SystemExit):
        try:
            importlib.import_module(module).main([])
        except Captured as found:
            return found.args[0]
    raise AssertionError(f"{module} parses nothing")


# ---- files


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """A header of these sizes, whatever the content is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def odd_files(teacher: Path, folder: Path) -> Iterator[tuple[str, Path, str]]:
    """(case, file, words of the sentence expected), of checkpoints that are none."""
    good = load_file(teacher)
    weights = good["model"]
    folder.mkdir(exist_ok=True)

    def write(case: str, content: Any, words: str) -> tuple[str, Path, str]:
        path = folder / f"{case.replace(' ', '_')}.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return case, path, words

    def with_weight(value: torch.Tensor) -> dict[str, Any]:
        return {"model": {**weights, "fc.weight": value}}

    whole = teacher.read_bytes()
    yield write("empty", b"", "it is empty")
    yield write("text", b"a text\n", "it starts with")
    yield write("cut", whole[: len(whole) // 2], "truncated or not a checkpoint")
    yield write("flipped", whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], "does not match its checksum")
    yield write("a list", [1], "holds a list")
    yield write("no weights", {"epoch": 3}, "holds no weights")
    yield write("whole network", torch.nn.Linear(2, 2), "it needs torch.nn.modules.linear.Linear")
    yield write("several", {"a": weights, "b": weights}, "several sets of weights")
    yield write("infinite epoch", {"model": weights, "epoch": float("inf")}, "not a finite number")
    yield write("nan accuracy", {"model": weights, "best_acc": float("nan")}, "not a finite number")
    yield write("odd arch", {"model": weights, "meta": {"arch": 5}}, "meta.arch is a int")
    yield write("odd shapes", {"model": weights, "meta": {"shapes": [1]}}, "meta.shapes is a list")
    yield write("unknown arch", {"model": weights, "meta": {"arch": "resnet9"}}, "unknown model 'resnet9'")
    yield write("complex", with_weight(weights["fc.weight"] * 1j), "is complex")
    yield write("sparse", with_weight(weights["fc.weight"].to_sparse()), "is sparse")
    yield write("meta", with_weight(weights["fc.weight"].to("meta")), "on the meta device")
    yield write("nan", with_weight(weights["fc.weight"] * float("nan")), "holds NaN")
    yield write("too large", with_weight(torch.ones(1).expand(10**12)), "more memory than is free")
    yield write("another shape", with_weight(torch.ones(10, 7)), "of another shape")
    yield write("other classes", with_weight(torch.ones(7, 64)), " 7 ")
    yield write("another order", {**good, "meta": {**good["meta"], "classes": list("9876543210")}}, "another order")


def bad_paths(folder: Path, suffix: str) -> dict[str, Path]:
    """What a path may name instead of the file that is meant."""
    folder.mkdir(exist_ok=True)
    paths = {kind: folder / f"{kind}{suffix}" for kind in PATHS}
    paths["folder"].mkdir(exist_ok=True)
    paths["zero"].write_bytes(b"")
    paths["cut"].write_bytes(b"PK\x03\x04" + bytes(50))
    paths["foreign"].write_bytes(bytes(range(256)) * 9)
    if not paths["fifo"].exists():
        os.mkfifo(paths["fifo"])
    return paths | {"device": Path("/dev/zero")}


# ---- the commands


@dataclass(frozen=True)
class Known:
    """What the commands need to be right but for one thing. root: where files may be written. runs: a root of finished
    ones. other: a finished run that is not the teacher's."""

    root: Path
    teacher: Path
    runs: Path
    other: Path

    @property
    def student(self) -> tuple[object, ...]:
        return ("--dataset", "digits", "--model_s", "resnet8", "--path_t", self.teacher, *BRIEF, "--dry_run")

    def scripts(self) -> dict[str, tuple[object, ...]]:
        """Module -> a command line that it accepts."""
        out, model = self.root / "out", ("--path", self.teacher)
        return {
            "test_model": (*model, "--dataset", "digits"),
            "eval_rep": ("--s_path", self.teacher, "--dataset", "digits", "--epochs", 1, "--image_size", 8),
            "predict": (self.root / "picture.png", *model),
            "scripts.export_student": (*model, "--out", out, "--forms", "safetensors"),
            "scripts.plot": ("reliability", *model, "--out", self.root / "a.png"),
            "scripts.make_table": ("--root", self.runs),
            "scripts.report": ("--root", self.runs, "--out", self.root / "r.html"),
            "scripts.compare": (self.teacher.parent, self.other),
            "scripts.cakd.robustness": (*model, "--dataset", "digits"),
            "scripts.class_distances": ("--path_t", self.teacher, "--dataset", "digits", "--out", self.root / "d.pt"),
            "scripts.convert_kd_ckpt_to_student": (self.teacher, "--out_path", self.root),
            "scripts.teachers.fetch_teachers": ("--list",),
            "scripts.tune": ("--search", "kd_T=1:4", "--study", self.root / "study", "--", *self.student),
        }


def checkpoints(known: Known) -> Iterator[Wrong]:
    """Odd files in every place of a checkpoint."""
    for case, path, words in odd_files(known.teacher, known.root / "odd"):
        named = () if "arch" in case or "order" in case else ("resnet8",)
        model = tuple(word for name in named for word in ("--model", name))
        teacher = tuple(word for name in named for word in ("--model_t", name))
        places: dict[str, tuple[object, ...]] = {
            "train_student.py": (*known.student, "--path_t", path, *teacher),
            "test_model.py": ("--dataset", "digits", "--path", path, *model),
            "eval_rep.py": ("--dataset", "digits", "--s_path", path, *model, "--epochs", 1, "--image_size", 8),
            "predict.py": (known.root / "picture.png", "--path", path, *model, "--image_size", 8),
            "scripts/export_student.py": (
                *("--dataset", "digits", "--path", path, *model, "--out", known.root / "out"),
                *("--forms", "safetensors"),
            ),
            "train_teacher.py": (
                *("--dataset", "digits", "--model", "resnet8", *BRIEF, "--dry_run", "--pretrained", path),
            ),
        }
        for script, argv in places.items():
            fits = case in ("other classes", "another order") and script not in ("train_student.py", "test_model.py")
            fits |= script == "train_teacher.py" and case in ("odd arch", "unknown arch", "another shape")
            yield Wrong(f"{script}: {case}", script, argv, words, may_run=fits)


def settings(known: Known) -> Iterator[Wrong]:
    """Numbers of train_student.py and of every method."""
    common = common_flags(TrainStudentConfigs)
    for flag in common:
        yield from _numbers(flag, "train_student.py", known.student)
    for name in method_dict:
        for flag in flags_of(method_dict[name]):
            values = [v for v in NUMBERS.get(flag.type, ()) if v not in ("x", "")]
            yield from _numbers(flag, "train_student.py", (*known.student, "--distill", name), values)
    for flag in common:
        if flag.choices:
            wrong = f"{flag.choices[0]}x"
            yield Wrong(f"{flag.names[0]} {wrong}", "train_student.py", (*known.student, flag.names[0], wrong), wrong)


def _numbers(flag: Flag, script: str, argv: tuple[object, ...], values: Sequence[str] | None = None) -> Iterator[Wrong]:
    for value in NUMBERS.get(flag.type, ()) if values is None else values:
        may_run = value in ("-1", "0", "1e300")
        words = flag.names[0] if flag.dest not in ("seed", "trials") else flag.dest
        if "--distill" in argv and may_run:
            words = ""  # the method may refuse the networks first
        yield Wrong(f"{flag.names[0]} {value!r}", script, (*argv, flag.names[0], value), words, may_run)


def parsers(known: Known) -> Iterator[Wrong]:
    """Numbers, choices and paths of the other scripts."""
    for module, argv in known.scripts().items():
        parser = parser_of(module)
        actions = list(parser._actions)
        for action in actions:
            if isinstance(action, argparse._SubParsersAction):
                actions += action.choices[str(argv[0])]._actions
        for action in actions:
            if not action.option_strings or action.nargs == 0:
                continue
            yield from _tried(module, argv, action, known.root)


def _tried(module: str, argv: tuple[object, ...], action: argparse.Action, root: Path) -> Iterator[Wrong]:
    flag, script = action.option_strings[0], module.replace(".", "/") + ".py"
    cut = argv.index("--") if "--" in argv else len(argv)

    def command(value: object) -> tuple[object, ...]:
        return (*argv[:cut], f"{flag}={value}", *argv[cut:])

    for value in NUMBERS.get(action.type, ()):
        may_run = value in ("-1", "0", "1e300")
        words = "" if may_run and module == "scripts.tune" else flag.lstrip("-")  # its trials are dry runs here
        yield Wrong(f"{script} {flag} {value!r}", script, command(value), words, may_run)
    if action.choices:
        yield Wrong(f"{script} {flag} misspelt", script, command("misspelt"), "misspelt")
    read = ("path", "path_t", "s_path", "file", "sources", "train_list", "test_list", "root", "data_folder", "data")
    if action.dest in read:
        for kind, path in bad_paths(root / "paths", ".pth").items():
            yield Wrong(f"{script} {flag} {kind}", script, command(path), "", may_run=True)
    written = ("out", "json", "csv", "report", "show", "out_path", "study")
    if action.dest in written:
        yield Wrong(f"{script} {flag} in no folder", script, command("/proc/none/x.png"), "/proc/none", may_run=True)


def configs(known: Known) -> Iterator[Wrong]:
    """--config, in every way broken."""
    folder = known.root / "configs"
    folder.mkdir(exist_ok=True)
    contents: Mapping[str, bytes] = {
        "cut.toml": b"epochs = ",
        "twice.toml": b"epochs = 1\nepochs = 2\n",
        "kind.toml": b'epochs = "many"\n',
        "unknown.toml": b"epoch_count = 3\n",
        "absurd.toml": b"epochs = 1000000000000000000000000000000\n",
        "nan.toml": b"learning_rate = nan\n",
        "table.toml": b"[data]\nmixup = nan\n",
        "list.json": b"[1, 2]",
        "cut.json": b'{"epochs": ',
        "deep.json": b"[" * 100_000,
        "kind.json": b'{"epochs": {"a": {"b": 1}}}',
        "null.json": b"\0\0\0",
        "tags.yaml": b"!!python/object/apply:os.system ['true']\n",
        "tabs.yaml": b"a:\n\t- b\n",
        "list.yaml": b"- 1\n",
        "latin.toml": b"name = '\xe9'\n",
        "choice.toml": b'schedule = "cosinus"\n',
        "empty.toml": b'distill = ""\n',
        "args.json": b'{"settings": [], "sources": {}}',
        "text.txt": b"epochs = 2\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        argv = (*known.student, "--config", folder / name)
        argv = tuple(a for a in argv if a not in ("--epochs", 2)) if "epochs" in content.decode("latin1") else argv
        yield Wrong(f"--config {name}", "train_student.py", argv, "")
    for kind, path in bad_paths(known.root / "paths", ".toml").items():
        yield Wrong(
            f"--config {kind}", "train_student.py", (*known.student, "--config", path), "", may_run=kind == "zero"
        )


def pictures(known: Known) -> Iterator[Wrong]:
    """Image folders with something wrong in them."""
    from PIL import Image

    good = Image.fromarray(np.full((12, 12, 3), 90, np.uint8))
    bad: dict[str, bytes] = {
        "zero.png": b"",
        "text.jpg": b"a text",
        "cut.png": png(12, 12, bytes(12 * 37))[:40],
        "bomb.png": png(60_000, 60_000),
        "short.png": png(12, 12, bytes(5)),
        "header.tif": b"II*\0\x08\0\0\0\xff\xff" + bytes(20),
        "noise.webp": b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20),
        "noise.gif": b"GIF89a\xff\xff\xff\xff\0\0\0",
        "noise.avif": b"\0\0\0\x20ftypavif" + bytes(30),
        "noise.jp2": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30),
    }
    for name, content in bad.items():
        root = known.root / "pictures" / name.replace(".", "_")
        for part in ("train", "val"):
            for label in ("a", "b"):
                place = root / part / label
                place.mkdir(parents=True, exist_ok=True)
                for i in range(4):
                    good.save(place / f"{i}.png")
        (root / "train" / "a" / name).write_bytes(content)
        (root / "val" / "b" / name).write_bytes(content)
        brief = ("--batch_size", 4, "--epochs", 1, "--max_steps", 2, "--tb_backend", "none", "--num_workers", 0)
        for dataset in ("folder", "imagenet"):
            model = ("--model", "resnet8", "--dataset", dataset, "--data_folder", root, "--image_size", 16)
            argv = (*model, *brief, "--save_root", known.root / "save" / dataset / name)
            yield Wrong(f"{dataset}: {name}", "train_teacher.py", argv, name, may_run=dataset == "imagenet")
            yield Wrong(f"{dataset}: {name} skipped", "train_teacher.py", (*argv, "--skip_corrupt"), "", may_run=True)
        argv = (root / "train" / "a" / name, "--path", known.teacher)
        yield Wrong(f"predict: {name}", "predict.py", argv, name)
    yield from trees(known)


def trees(known: Known) -> Iterator[Wrong]:
    layouts: dict[str, Sequence[str]] = {
        "nothing": (),
        "no train": ("val/a/1.png", "val/b/1.png"),
        "no val": ("train/a/1.png", "train/b/1.png"),
        "one class": ("train/a/1.png", "val/a/1.png"),
        "other classes": ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"),
        "unsorted": ("train/a/1.png", "train/b/1.png", "val/1.png"),
        "empty class": ("train/a/1.png", "train/b/x.txt", "val/a/1.png", "val/b/1.png"),
        "flat": ("1.png", "2.png"),
    }
    for name, files in layouts.items():
        root = known.root / "trees" / name
        root.mkdir(parents=True)
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(png(4, 4, bytes(52)))
        for dataset in ("folder", "imagenet", "tinyimagenet", "stl10"):
            argv = ("--model", "resnet8", "--dataset", dataset, "--data_folder", root, "--batch_size", 2, "--dry_run")
            yield Wrong(f"{dataset}: {name}", "train_teacher.py", (*argv, "--num_workers", 0, "--image_size", 16), "")
        for dataset in ("cifar10", "cifar100"):
            argv = ("--model", "resnet8", "--dataset", dataset, "--data_folder", root / "no" / "where", "--dry_run")
            yield Wrong(f"{dataset}: {name}", "train_teacher.py", argv, "")


def clips(known: Known) -> Iterator[Wrong]:
    """Lists of videos, the videos in them, and recordings."""
    from tests.support.recordings import left_bright, write_inertial, write_video

    root = known.root / "clips"
    write_video(root / "good.avi", left_bright(8, 0))
    good = (root / "good.avi").read_bytes()
    for name, content in {"zero.avi": b"", "text.mp4": b"a text", "cut.avi": good[: len(good) // 3]}.items():
        (root / name).write_bytes(content)
    (root / "test.txt").write_text("good.avi 0\ngood.avi 1\n")
    lines: dict[str, bytes] = {
        "empty": b"",
        "blank lines": b"\n\n",
        "no label": b"good.avi\n",
        "text label": b"good.avi cat\n",
        "negative": b"good.avi -1\n",
        "huge label": b"good.avi 1000000000000000000\n",
        "large label": b"good.avi 0\ngood.avi 100000\n",
        "missing video": b"good.avi 0\nnone.avi 1\n",
        "empty video": b"good.avi 0\nzero.avi 1\n",
        "text as video": b"good.avi 0\ntext.mp4 1\n",
        "cut video": b"good.avi 0\ncut.avi 1\n",
        "no frames": b"good.avi 0\nframes 0 1\n",
        "latin": b"good\xe9.avi 0\n",
        "zero bytes": b"\0\0 0\n",
        "one class": b"good.avi 0\ngood.avi 0\n",
        "file as folder": b"good.avi 0\ngood.avi 8 1\n",
    }
    brief = ("--model", "tsm:resnet8", "--dataset", "video", "--data_folder", root, "--image_size", 16)
    brief += ("--num_segments", 2, "--batch_size", 2, "--num_workers", 0, "--epochs", 1, "--tb_backend", "none")
    for name, content in lines.items():
        path = root / f"{name.replace(' ', '_')}.txt"
        path.write_bytes(content)
        for more in ((), ("--skip_corrupt",), ("--decoder", "opencv")):
            save = known.root / "save" / f"{name} {' '.join(more)}"
            argv = (*brief, "--train_list", path, "--save_root", save, *more)
            yield Wrong(f"list: {name} {' '.join(more)}", "train_teacher.py", argv, "", may_run=bool(more))
    for kind, path in bad_paths(known.root / "paths", ".txt").items():
        yield Wrong(f"list: {kind}", "train_teacher.py", (*brief, "--train_list", path, "--dry_run"), "")
    recording = root / "a1_s1_t1_inertial.mat"
    write_inertial(recording, 0)
    whole = recording.read_bytes()
    for name, content in {"zero": b"", "cut": whole[: len(whole) // 2], "text": b"a text", "noise": bytes(300)}.items():
        folder = known.root / "utd" / name
        (folder / "Inertial").mkdir(parents=True)
        for s in (1, 2, 3, 4):
            for a in (1, 2):
                (folder / "Inertial" / f"a{a}_s{s}_t1_inertial.mat").write_bytes(content)
        for more in ((), ("--skip_corrupt",)):
            argv = ("--model", "sensor_cnn", "--dataset", "utd_mhad", "--data_folder", folder, "--modality", "sensor")
            argv += ("--batch_size", 2, "--dry_run", "--num_workers", 0, *more)
            yield Wrong(f"recording: {name} {' '.join(more)}", "train_teacher.py", argv, "")


def words_of_settings(known: Known) -> Iterator[Wrong]:
    for argv, words in SETTINGS:
        yield Wrong(" ".join(map(str, argv)), "train_student.py", (*known.student, *argv), words)


SETTINGS: tuple[tuple[tuple[object, ...], str], ...] = (
    (("--model_s", "resnet8x5"), "unknown model 'resnet8x5'"),
    (("--model_s", ""), "--model_s is empty"),
    (("--distill", "simkdd"), "unknown method 'simkdd'"),
    (("--distill", "kd+kd"), "names a method twice"),
    (("--dataset", "cifar10O"), "unknown data set 'cifar10O'"),
    (("--dataset", ""), "unknown data set ''"),
    (("--path_t", "nowhere.pth"), "No such file"),
    (("--path_t", ""), "--path_t is empty"),
    (("--path_t", "/dev/zero"), "is a pipe, a socket or a device"),
    (("--path_t", "timm:no_such_net"), "no_such_net"),
    (("--save_root", ""), "--save_root is empty"),
    (("--mean_t", "nan"), "--mean_t nan"),
    (("--std_t", 0), "must be above 0"),
    (("--std_t", 1, 1), "or one per channel"),
    (("--val_fraction", 0.0001), "val_fraction 0.0001"),
    (("--few_ratio", 2), "--few_ratio 2.0"),
    (("--few_ratio", 0.0001), "--few_ratio 0.0001"),
    (("--image_size", 10**5), "--image_size 100000"),
    (("--trial", "a/b"), "--trial 'a/b'"),
    (("--trial", "a\nb"), "--trial"),
    (("--seed", -1), "the seed -1"),
    (("--seed", 2**70), "the seed"),
    (("--weight", "kd=nan"), "kd"),
    (("--weight", "5e-4"), "--weight takes NAME=NUMBER"),
    (("--lr_decay_epochs", "150;180"), "--lr_decay_epochs '150;180'"),
    (("--lr_decay_epochs", "180,150"), "increasing"),
    (("--gpu_id", "x"), "--gpu_id 'x'"),
    (("--hint_layer", 9, "--distill", "hint"), "hint_layer"),
    (("--distill", "crd", "--nce_k", 10**8), "nce_k"),
    (("--class_subset", 3), "--class_subset"),
    (("--plugin", "none.py"), "none.py"),
    (("--resume", "none.pth"), "none.pth"),
    (("--no_such_flag",), "--no_such_flag"),
    (("--mixup", 1, "--teacher_cache", "cache"), "--mixup"),
    (("--accumulate", 64), "--accumulate 64"),
    (("--unlabelled", "nowhere"), "nowhere"),
    (("--trials", 3, "--name", "a"), "--name"),
)


def every(known: Known) -> list[Wrong]:
    """All cases; makes the files that they name."""
    from PIL import Image

    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(known.root / "picture.png")
    makers = (words_of_settings, checkpoints, configs, pictures, clips, parsers, settings)
    return [case for maker in makers for case in maker(known)]
