#!/usr/bin/env python3
"""Extract the student of an MMRazor distillation checkpoint: python scripts/convert_kd_ckpt_to_student.py FILE.pth

Writes FILE_student.pth with `meta` and `state_dict`, which test_model.py and MMAction2 read. Nothing in the file is
run: the few classes that MMEngine pickles with the weights are read as empty stand-ins and dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import atomic_save
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.networks.checkpoint import load_file
from helper.options.quick import normalised

STUDENT = "architecture."
CLASSES = (  # what a running MMEngine pickles besides tensors and NumPy's arrays: curves of the log, settings
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.ConfigDict",
    "mmengine.config.config.Config",
)
FUNCTIONS = (
    "builtins.getattr",  # of HistoryBuffer's methods by name
    "__builtin__.getattr",
)


class Inert:
    """Takes the place of an object of another package: keeps nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def __setstate__(self, state: Any) -> None:
        return None

    def __setitem__(self, key: Any, value: Any) -> None:
        return None


def stand_ins() -> list[tuple[Any, str]]:
    """(object, dotted name in a file) pairs for the unpickler's allow-list; each name has an object of its own."""
    classes = [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in CLASSES]
    functions = [(lambda *args, **kwargs: Inert(), name) for name in FUNCTIONS]
    return [*classes, *functions, (Inert, "inert")]  # itself, as what the functions return is given its state


def read(path: Path) -> Any:
    """The file's content; whatever the allow-list names is Inert. UserError where it needs anything else."""
    with torch.serialization.safe_globals(stand_ins()):
        return load_file(path)


def plain(value: Any) -> bool:
    """Whether a value is made of plain types and tensors alone."""
    if isinstance(value, Mapping):
        return all(plain(k) and plain(v) for k, v in value.items())
    if isinstance(value, list | tuple | set):
        return all(map(plain, value))
    return value is None or isinstance(value, str | int | float | bool | bytes | torch.Tensor)


def student_of(content: Any, path: Path) -> tuple[dict[str, Any], list[str]]:
    """({"meta", "state_dict"}, names of the entries of meta that were no plain values)."""
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or "meta" not in content:
        raise UserError(f"{path} is not a distillation checkpoint of MMRazor: it has no meta and state_dict")
    student = {k.removeprefix(STUDENT): v for k, v in state.items() if k.startswith(STUDENT)}
    if not student:
        prefixes = ", ".join(sorted({k.partition(".")[0] for k in state})) or "nothing"
        raise UserError(
            f"{path} holds no student: its weights are of {prefixes}, and a student's begin with {STUDENT}; is it "
            "converted already?"
        )
    meta = content["meta"]
    kept = {k: v for k, v in meta.items() if plain(v)} if isinstance(meta, Mapping) else {}
    return {"meta": kept, "state_dict": student}, sorted(map(str, meta.keys() - kept.keys())) if kept else []


def main(argv: Any = None) -> None:
    parser = ScriptParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="file that holds teacher and student")
    parser.add_argument(
        "--out_path", type=Path, help="folder to write to (default: that of the checkpoint)", metavar="FOLDER"
    )
    parser.add_argument("--inplace", action="store_true", help="replace the checkpoint")
    args = parser.parse_args(normalised(argv))
    if args.inplace and args.out_path:
        raise UserError("--inplace replaces the checkpoint itself: leave --out_path out")
    path = args.checkpoint
    content = read(path)
    if isinstance(content, Mapping) and "model" in content and "state_dict" not in content:
        print(f"{path} is already the student alone: test_model.py --path {path} reads it as it is")
        return
    student, dropped = student_of(content, path)
    folder = args.out_path or path.parent
    if not folder.is_dir():
        raise UserError(f"--out_path {folder} is not a folder: create it first")
    target = path if args.inplace else folder / f"{path.stem}_student.pth"
    atomic_save(student, target)
    if dropped:
        print(f"left out of meta, as they are no plain values: {', '.join(dropped)}")
    print(f"{target}: {len(student['state_dict'])} weights of the student, {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_script(main)
