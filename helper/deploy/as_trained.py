"""Data settings of a trained network: recorded in its checkpoint, or given."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.log import log
from dataset.base import DataOptions
from dataset.clips.video import DATA
from helper.networks.checkpoint import read_checkpoint

CHOSEN = ("val_fraction", "classes_subset")  # further settings that choose the training data


# the same for a trained network: the default is the record in its checkpoint
AS_TRAINED = tuple(
    dataclasses.replace(f, default=None, help=f"{f.help} (default: as in training, or {f.default})")
    if f.dest == "sampling"
    else f
    for f in DATA
)


def add_data_set(parser: argparse._ActionsContainer, otherwise: str = "cifar100") -> None:
    """Add the flags that choose a trained network's data; the defaults are those of its training."""
    parser.add_argument(
        "--dataset", help=f"data set (default: that of the checkpoint's training, or {otherwise}); --list shows all"
    )
    parser.add_argument(
        "--val_fraction",
        type=float,
        help="evaluate on this held-out share of the training set (default: as in training; 0: the test set)",
    )
    parser.add_argument("--classes_subset", help="classes of ImageNet (default: as in training)")


def dataset_of(path: str | Path, given: str | None, otherwise: str = "cifar100") -> str:
    """The data set for a checkpoint: the given one, or the one that its training recorded."""
    if given is None and (recorded := read_checkpoint(path).meta.get("dataset")) is not None:
        log.info("data set as in training: %s", recorded)
        return str(recorded)
    return given or otherwise


def add_as_trained(parser: argparse._ActionsContainer) -> None:
    """Add flags for scripts that read a trained network: its data set and clip settings, by default as in training."""
    from core.option import add_flags

    add_data_set(parser)
    clips = parser.add_argument_group("lists of videos")
    clips.add_argument("--num_segments", type=int, help="frames of a clip (default: as in training, or 8)")
    clips.add_argument("--num_workers", type=int, default=0, help="loader processes, for data read from disk")
    clips.add_argument("--skip_corrupt", "--skip_bad", action="store_true", help="skip what cannot be read")
    add_flags(clips, AS_TRAINED)


def clip_options(args: argparse.Namespace) -> dict[str, Any]:
    """The values of add_as_trained()'s flags, for options_as_trained()."""
    names = ("num_segments", "num_workers", "skip_corrupt", "val_fraction", "classes_subset")
    same = {k: getattr(args, k) for k in names}
    return {**same, "more": {f.dest: getattr(args, f.dest) for f in AS_TRAINED}}


def recorded_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Entry of Batch.inputs -> per-sample shape, recorded by the checkpoint's run; {} if it did not."""
    shapes = read_checkpoint(path).meta.get("shapes", {})
    return {k: tuple(v) for k, v in shapes.items()}


def options_as_trained(path: str | Path, root: Path, image_size: int | None = None, **given: Any) -> DataOptions:
    """The data of a checkpoint: values that are None or absent in `given` are taken from the record of its training.

    For images: size, held-out share and subset of classes; for action recordings: everything.
    """
    meta, shapes = read_checkpoint(path).meta, recorded_shapes(path)
    read, image, video, sensor = (shapes.get(k or "") for k in (meta.get("reads"), "image", "video", "sensor"))
    modality = given.pop("modality", None) or (meta.get("modalities", {}).get(meta["reads"]) if read else None)
    segments = given.pop("num_segments", None) or (video[0] if video else None)
    for name in CHOSEN:
        if given.get(name) is None:
            given.pop(name, None)
            if meta.get(name):
                log.info("as in training: --%s %s", name, meta[name])
                given[name] = meta[name]
    given["more"] = as_sampled(meta, given.get("more", {}), image_size in (None, video[-1] if video else None))
    return DataOptions(
        root=root,
        image_size=image_size or next((shape[-1] for shape in (video, image) if shape), None),
        modality=(modality,) if modality else (),
        data_split=given.pop("data_split", None) or meta.get("data_split"),
        window=sensor[-1] if sensor else None,
        **(given | ({"num_segments": segments} if segments else {})),
    )


def as_sampled(meta: Mapping[str, Any], more: Mapping[str, Any], same_size: bool) -> dict[str, Any]:
    """Settings of lists of videos; those that are None or absent are taken from the checkpoint's record.

    same_size: whether clips are cropped to the size of training; if so, frames also keep their shorter side.
    """
    recorded = {k: meta[k] for k in ("sampling", "short_side") if k in meta and (same_size or k == "sampling")}
    return {**more, **{k: v for k, v in recorded.items() if more.get(k) is None}}


def clip_settings_notice(path: str | Path, options: DataOptions) -> str | None:
    """One line that compares the clips of evaluation with those of training: equal, or each difference. None if the
    checkpoint has no record, or the network reads no list of videos."""
    meta, shapes = read_checkpoint(path).meta, recorded_shapes(path)
    if "video" not in shapes or "sampling" not in meta:
        return None
    frames, *_, side = shapes["video"]
    trained = {"num_segments": frames, "image_size": side} | {k: meta[k] for k in ("sampling", "short_side")}
    now = {"num_segments": options.num_segments, "image_size": options.image_size, **options.more}
    others = [f"--{k} {now[k]} (trained with {v})" for k, v in trained.items() if now.get(k) not in (None, v)]
    if others:
        return f"evaluation differs from training: {', '.join(others)}"
    return f"as trained: {frames} frames of {side} px, {meta['sampling']} sampling, shorter side {meta['short_side']}"
