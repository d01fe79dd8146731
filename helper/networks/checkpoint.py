"""Checkpoints, read without running code from the file.

Forms that are read: {"model" | "net" | "state_dict" | "model_state_dict": weights, ...} and a plain state dict, zip or
legacy serialisation, with or without the prefixes of DDP, torch.compile and Lightning. Keys that profilers add are left
out. All tensors are loaded to the CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickletools
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.files import intact
from core.log import log
from core.machine import free
from core.packages import needed
from core.protocols import ModelSpec, UserError, explained
from models._hub import is_folder

State = dict[str, Tensor]

NUMPY_MAKERS: list[Any] = [x.__reduce__()[0] for x in (np.float64(0), np.zeros(0))]
WEIGHT_ENTRIES = ("model", "net", "state_dict", "model_state_dict", "model_state", "network", "weights")
AVERAGED_ENTRIES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "ema_model")
ACCURACY_ENTRIES = ("best_acc", "accuracy", "acc")
PEERS = ("net1", "net2")  # of an online run: the student, and its peer
AVERAGE = "ema"  # FILE@ema: the averaged weights of a file that holds both
EXPORTED_WEIGHTS = "model.safetensors"  # of scripts/export_student.py

META: dict[str, Any] = dict.fromkeys(
    ("arch", "arch_t", "classes_subset", "dataset", "deploys", "method", "val_dir"), str
)
META |= dict.fromkeys(("config", "shapes", "shapes_t", "modalities"), Mapping)
META |= dict.fromkeys(("train_list", "test_list", "frame_template", "decoder", "sampling"), str)
META |= {"num_classes": int, "val_fraction": int | float, "reduced_decode": bool}
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")  # DistributedDataParallel, torch.compile, Lightning

COMPANIONS = re.compile(
    r"[^.]*(loss|criterion|metric|accuracy)[^.]*\.", re.IGNORECASE
)  # a network in Lightning's modules

# keys that counters, profilers and averagers add to a state dict
ADDED = ("total_ops", "total_params", "n_averaged", "num_updates", "__flops__", "__params__")
DOTTED = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # the first DenseNets

# classes of plain records besides tensors: RepDistiller's options, numpy's numbers and arrays, paths
PLAIN_CLASSES: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdFDSU"},
    *((f, f"numpy.{core}.multiarray.{f.__name__}") for f in NUMPY_MAKERS for core in ("core", "_core")),
]
for where in ("pathlib.", "pathlib._local."):
    PLAIN_CLASSES += [(PurePosixPath, f"{where}{name}") for name in ("Path", "PosixPath", "PurePosixPath")]
    PLAIN_CLASSES += [(PureWindowsPath, f"{where}{name}") for name in ("WindowsPath", "PureWindowsPath")]

TORCH_FILES = (b"PK\x03\x04", b"\x80")  # zip, pickle


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file. state: the network's weights. epoch: as recorded. best_acc: top-1 in percent, of a forward
    pass in the dtype evaluated_in.

    meta: the run's record (arch, num_classes, dataset, ...), {} in files of other toolboxes.
    extra: further entries that hold only tensors, such as proj, head, attention.
    """

    path: Path
    state: State
    meta: dict[str, Any] = field(default_factory=dict)
    best_acc: float | None = None
    epoch: int | None = None
    extra: dict[str, State] = field(default_factory=dict)
    evaluated_in: str = "fp32"
    peer: str | None = None  # the requested one of two

    @property
    def rounding(self) -> float:
        """The points by which an evaluation in float32 may differ from best_acc."""
        return 0.1 if self.evaluated_in == "fp32" else 0.5


def load_file(path: str | Path, way_out: str = "fetch or save it again", *, expect_checksum: bool = False) -> Any:
    """torch.load on the CPU: only tensors, plain values and PLAIN_CLASSES.

    UserError if the file is missing, not a checkpoint, damaged, larger than the free memory, or needs other classes.
    way_out: what to do if it is damaged.
    """
    path = Path(path)
    with explained(f"cannot read checkpoint {path}"):
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise UserError(f"{path} is a folder, not a checkpoint: give the .pth file in it")
        if not stat.S_ISREG(kind):  # reading a pipe or a device may never end
            raise UserError(f"{path} is a pipe, a socket or a device, not a checkpoint: give a regular file")
        members = _check_declared(path)
        content = path.read_bytes()  # first, so that errors of the reader are not taken for errors of the disk
    if (sound := intact(content)) is False:
        raise UserError(f"{path} is damaged (its content does not match its checksum): {way_out}")
    if path.suffix == ".safetensors":
        return _safetensors(path, content)
    if not content.startswith(TORCH_FILES):
        reason = f"it starts with {content[:4]!r}" if content else "it is empty"
        advice = way_out if expect_checksum else "give a file that torch.save wrote"
        raise UserError(f"{path} is not a checkpoint ({reason}): {advice}")
    if program := next((p for mark, p in PROGRAMS.items() if any(m.endswith(mark) for m in members)), None):
        raise UserError(f"{path} is a {program}: load it with that and save its state_dict() with torch.save")
    try:
        with torch.serialization.safe_globals(PLAIN_CLASSES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickle protocols; errors are reported below
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes the unpickler raises almost any exception
        reason = str(error).split("WeightsUnpickler error: ")[-1].strip() or type(error).__name__
        refused = re.search(r"GLOBAL (\S+)", reason)
        if wanted := refused[1] if refused else ", ".join(_calls(content)):
            raise UserError(
                f"{path} is refused: it needs {wanted}, and only tensors and plain values are loaded, "
                "as anything else could run code; save its state_dict instead (for MMRazor's distillation checkpoints, "
                "use scripts/convert_kd_ckpt_to_student.py)"
            ) from error
        raise UserError(
            f"{path} is truncated or not a checkpoint ({reason.splitlines()[0][:120]}): {way_out}"
        ) from error
    if sound is None and expect_checksum:
        log.info("%s has no checksum (written by an older version), so damage cannot be noticed", path)
    return loaded


# archives that hold code: the end of a member's name -> the kind of file
PROGRAMS = {
    "/constants.pkl": "TorchScript program (torch.jit.load)",
    "models/model.json": "program of torch.export (torch.export.load)",
}


def _check_declared(path: Path) -> list[str]:
    """The members of an archive, [] for other files. UserError if a file needs more than the free memory."""
    needed, members = path.stat().st_size, []
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            needed += sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        pass  # another format, or damaged; its reader will notice
    if needed > (left := free()):
        raise UserError(
            f"{path} needs {needed / 2**30:.1f} GiB of memory, but {left / 2**30:.1f} GiB are free: it is "
            "damaged, or needs a larger machine"
        )
    return members


def _calls(content: bytes) -> list[str]:
    """The classes that an unreadable pickle needs, apart from torch's own; nothing is run."""
    found: list[str] = []
    texts: list[str] = []
    try:
        for code, value, _ in pickletools.genops(content):
            if code.name == "GLOBAL":
                found.append(str(value).replace(" ", "."))
            elif code.name == "STACK_GLOBAL":
                found.append(".".join(texts[-2:]))
            elif isinstance(value, str):
                texts.append(value)
    except Exception:  # on foreign bytes
        return []
    return [name for name in dict.fromkeys(found) if not name.startswith(("torch._utils.", "collections.OrderedDict"))][
        :3
    ]


def _safetensors(path: Path, content: bytes) -> Any:
    """A file of scripts/export_student.py as its original checkpoint; any other file as a plain state dict."""
    safetensors = needed("safetensors", f"reading {path}")
    try:
        tensors = needed("safetensors.torch").load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        meta = json.loads(header.get("__metadata__", {}).get("meta", "null"))
    except (safetensors.SafetensorError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file ({str(error)[:120]}): fetch or save it again"
        ) from error
    if meta is None:
        return tensors
    found: dict[str, Any] = {"meta": meta}
    for key, value in tensors.items():
        entry, _, name = key.partition(".")
        found.setdefault(entry, {})[name] = value
    return found


def weights_in(path: str | Path) -> str | Path:
    """The checkpoint of a path: the file itself, the exported weights in a folder, or the best epoch of a run.

    Folders of transformers and names of published weights are returned as they are.
    """
    place = Path(path)
    if not os.path.isdir(place):  # Path.is_dir() raises an error if the name is too long
        return path
    runs = [*sorted(place.glob("*_best.pth")), *sorted(place.glob("*_last.pth"))]
    choice = [place / EXPORTED_WEIGHTS] if (place / EXPORTED_WEIGHTS).is_file() else runs
    if not choice:
        if is_folder(place):
            return path
        raise UserError(
            f"'{place}' holds neither {EXPORTED_WEIGHTS} of an export nor a *_best.pth of a run: give the path of the "
            "checkpoint"
        )
    if len({p.name.rpartition("_")[0] for p in choice}) > 1:
        raise UserError(f"'{place}' holds several networks ({', '.join(p.name for p in choice)}): give one of them")
    return choice[0]


class CheckpointOf(argparse.Action):
    """An `action` of argparse: checkpoints, each the file itself or the folder of a run or an export."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        found = [weights_in(value) for value in values] if isinstance(values, list) else weights_in(values)
        setattr(namespace, self.dest, found)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read any of the forms named above. Raises UserError as load_file does, and if no weights are found.

    FILE@net1 and FILE@net2 mean one of two peers that were trained together, FILE@ema the averaged weights of a file
    that also holds the trained ones.
    """
    path, peer = _peer_of(Path(path))
    content = load_file(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of weights: save a state_dict")
    _refuse_odd(path, content)
    entry = _entry_of(path, content, peer)
    state = _tensors(content[entry] if entry else content)
    if entry is None:
        state = {k: v for k, v in state.items() if k not in ACCURACY_ENTRIES}
    if not state:
        raise UserError(
            f"{path} holds no weights, only {', '.join(map(str, content)) or 'an empty dict'}: "
            f"expected an entry {', '.join(WEIGHT_ENTRIES)} or a plain state dict"
        )
    state = _unwrap(state)
    if peer != AVERAGE:
        state, entry = _one_peer(path, state, entry, content, peer)
    _refuse_odd_weights(path, state)
    meta, epoch = content.get("meta"), _number(content.get("epoch"))
    extra = {
        k: _unwrap(v)
        for k, v in content.items()
        if k != entry and isinstance(v, Mapping) and v and len(_tensors(v)) == len(v)
    }
    return Checkpoint(
        path,
        state,
        dict(meta) if isinstance(meta, Mapping) else {},
        _accuracy(content, state, entry, peer),
        None if epoch is None else int(epoch),
        extra,
        _evaluated_in(content),
        peer,
    )


def _entry_of(path: Path, content: Mapping[str, Any], peer: str | None) -> str | None:
    """The entry that holds the weights; None if they are the content itself."""
    averaged = next((k for k in AVERAGED_ENTRIES if _tensors(content.get(k))), None)
    if peer == AVERAGE:
        if averaged is None:
            raise UserError(f"{path} holds no averaged weights ({', '.join(AVERAGED_ENTRIES)}): leave @{AVERAGE} out")
        return averaged
    entry = next((k for k in WEIGHT_ENTRIES if _tensors(content.get(k))), None)
    if entry is not None and averaged is not None:
        log.info(
            "%s holds averaged weights (%s) and trained ones (%s), which are used: %s@%s reads the average",
            *(path, averaged, entry, path, AVERAGE),
        )
    if entry is None and all(v.ndim == 0 for v in _tensors(content).values()):
        inside = [str(k) for k, v in content.items() if _tensors(v)]
        if len(inside) > 1:
            raise UserError(f"{path} holds several sets of weights ({', '.join(inside)}): save a file with one of them")
        entry = inside[0] if inside else None
    return entry


def _refuse_odd_weights(path: Path, state: State) -> None:
    """UserError if a weight is not a dense array of numbers on the CPU, or is NaN."""
    needed = sum(v.numel() * v.element_size() for v in state.values() if v.layout == torch.strided)
    if needed > free():
        raise UserError(
            f"{path} holds weights of {needed / 2**30:.1f} GiB, more memory than is free: use a larger machine"
        )
    for name, value in state.items():
        kinds = {
            "complex": value.is_complex(),
            "sparse": value.layout != torch.strided,
            "quantised": value.is_quantized,
            "without values, on the meta device": value.is_meta,
        }
        if odd := next((kind for kind, holds in kinds.items() if holds), None):
            raise UserError(f"{path}: the weight {name} is {odd}: save dense weights of real numbers")
        if value.is_floating_point() and bool(value.float().isnan().any()):
            raise UserError(
                f"{path}: the weight {name} holds NaN, as after a training that diverged: use an earlier one"
            )


def _refuse_odd(path: Path, content: Mapping[str, Any]) -> None:
    """UserError if a recorded value is not a finite number, or an entry of meta has another type."""
    for key in ("epoch", *ACCURACY_ENTRIES):
        value = content.get(key)
        if _is_number(value) and _number(value) is None:
            raise UserError(f"{path} says {key} = {str(value)[:40]}, not a finite number: save it again without {key}")
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        return
    for key, kind in META.items():
        if not isinstance(value := meta.get(key), kind | None):
            raise UserError(f"{path} says meta.{key} is a {type(value).__name__}: save it again without meta")


def _evaluated_in(content: Mapping[str, Any]) -> str:
    """Precision of the recorded accuracy in our files, best or last; float32 for all other files."""
    if isinstance(meta := content.get("meta"), Mapping) and "evaluated_in" in meta:
        return str(meta["evaluated_in"])
    identity = content.get("identity")
    if not isinstance(identity, Mapping):
        return "fp32"
    finished = content.get("epoch") == identity.get("epochs")
    exact = {"auto": finished, "train": False}.get(str(identity.get("eval_precision")), True)
    return "fp32" if exact else str(identity.get("precision", "fp32"))


def _peer_of(path: Path) -> tuple[Path, str | None]:
    """FILE@net2 -> (FILE, "net2"), likewise FILE@ema; unless a file has that name."""
    name, at, peer = path.name.rpartition("@")
    return (path.with_name(name), peer) if at and peer in (*PEERS, AVERAGE) and not path.exists() else (path, None)


def _one_peer(
    path: Path, state: State, entry: str | None, content: Mapping[str, Any], peer: str | None
) -> tuple[State, str | None]:
    """The weights of the requested peer, from HSAKD's files, which prefix both, or from this toolbox's."""
    if all(k.startswith(tuple(f"{p}." for p in PEERS)) for k in state):
        if peer is None:
            raise UserError(f"{path} holds two peers: choose one of them, {path}@net1 or {path}@net2")
        return {k.removeprefix(f"{peer}."): v for k, v in state.items() if k.startswith(f"{peer}.")}, entry
    if peer is None:
        return state, entry
    second = _tensors(content.get("peer"))
    if not second:
        raise UserError(f"{path} holds one network without a peer: leave @{peer} out")
    return (state, entry) if peer == PEERS[0] else (_unwrap(second), "peer")


def _tensors(entry: Any) -> State:
    if not isinstance(entry, Mapping):
        return {}
    return {k: v for k, v in entry.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _unwrap(state: Mapping[str, Tensor]) -> State:
    """The state dict without prefixes of wrappers and keys added by other tools."""
    found = {k: v for k, v in state.items() if k.rpartition(".")[2] not in ADDED}
    while prefix := next((p for p in WRAPPERS if _wraps(p, found)), None):
        found = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    return {DOTTED.sub(r"\1\2", k): v for k, v in found.items()}


def _wraps(prefix: str, state: State) -> bool:
    """Whether all keys have this prefix, except those of a loss or metric."""
    return any(k.startswith(prefix) for k in state) and all(k.startswith(prefix) or COMPANIONS.match(k) for k in state)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int | np.number) or (isinstance(value, Tensor) and value.ndim == 0)


def _number(value: Any) -> float | None:
    """The number, or None if it is not a finite number."""
    if not _is_number(value):
        return None
    try:
        number = float(value)
    except (OverflowError, RuntimeError, TypeError):  # an integer beyond float, a complex tensor
        return None
    return number if math.isfinite(number) else None


def _accuracy(content: Mapping[str, Any], state: State, entry: str | None, peer: str | None) -> float | None:
    """The recorded accuracy of these weights. In an unfinished run best_acc belongs to another epoch; between epochs,
    its last row belongs to these weights.

    A pair's number is that of its first network, or in published files of the better one. In published files of
    networks with auxiliary heads it may be that of the network or of its best head.
    """
    if isinstance(row := content.get("row"), Mapping):
        return _number(row.get("test_acc")) if content.get("step") == 0 else None
    foreign = not isinstance(content.get("meta"), Mapping)
    if entry == "peer" or (foreign and (peer or any(k.startswith("auxiliary_classifier.") for k in state))):
        return None
    for key in ACCURACY_ENTRIES:
        value = _number(content.get(key))
        if value is not None:
            is_fraction = foreign and value <= 1  # HSAKD records a share; this toolbox records percent
            return 100 * value if is_fraction else value
    return None


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], what: str, way_out: str = "give the architecture it was saved from"
) -> None:
    """Strict load; only num_batches_tracked may be missing, which torch 0.4 and earlier did not save.

    what: the source in messages ("teacher save/.../resnet32x4_best.pth"). way_out: what to do if the keys or shapes
    differ. A UserError leaves the model unchanged.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    reshaped = [k for k in own if k in state and own[k].shape != state[k].shape]
    if (
        reshaped
        and not missing
        and not unexpected
        and all(
            isinstance(model.get_submodule(k.rpartition(".")[0]), nn.Linear)
            and own[k].ndim == state[k].ndim
            and own[k].shape[1:] == state[k].shape[1:]
            for k in reshaped
        )
    ):  # linear layers that differ only in the number of outputs
        key = reshaped[0]
        raise UserError(
            f"{what} was trained for {len(state[key])} classes, but this {type(model).__name__} has "
            f"{len(own[key])} ({key.rpartition('.')[0]}): use the data set it was trained on"
        )
    shapes = [f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}" for k in reshaped]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    if problems:
        raise UserError(
            f"{what} does not fit this {type(model).__name__}: of {len(own)} weights {', '.join(problems)}: {way_out}"
        )
    model.load_state_dict(state, strict=False)


def infer_arch(
    path: str | Path, checkpoint: Checkpoint, explicit: str | None, known_names: Iterable[str], flag: str = "--model_t"
) -> str:
    """The registry name of the network in a checkpoint.

    Sources in order: the file's record, `explicit` (the value of `flag`), the file name, the folder name (for distilled
    students its `S:` group). UserError if none gives a name, or if `explicit` contradicts the record.
    """
    recorded = checkpoint.meta.get("arch")
    if recorded and explicit and recorded != explicit:
        raise UserError(f"{path} holds a {recorded}, but {flag} is {explicit}: leave {flag} out")
    if recorded or explicit:
        return str(recorded or explicit)
    path = Path(path).absolute()
    folder = path.parent.name
    student = re.match(r"S[:~](.+?)_T[:~]", folder)
    known = sorted(known_names, key=len, reverse=True)
    stem = path.name.rpartition("@")[0] or path.name  # one of two peers
    for text in (re.sub(r"\.(pth|pt)(\.tar)?$", "", stem), student[1] if student else folder):
        for name in known:
            if text == name or text.startswith(f"{name}_"):
                return name
    raise UserError(f"cannot tell the architecture of {path} from its name or folder: give it with {flag}")


def num_classes_of(state: Mapping[str, Tensor], spec: ModelSpec) -> int:
    """Number of classes of the classifier in `state`. UserError if there is none of that name."""
    inside = f"{spec.head}."
    weights = [v for k, v in state.items() if k.startswith(inside) and k.endswith(".weight") and v.ndim > 1]
    if not weights:
        raise UserError(f"the checkpoint has no {inside}weight, the classifier of {spec.name}: give its architecture")
    return weights[-1].shape[0]
