"""Data settings of a trained network: as its checkpoint recorded them, unless given."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.log import log
from core.protocols import UserError
from dataset.base import DataOptions
from dataset.clips.video import DATA
from helper.networks.checkpoint import read_checkpoint

CHOSEN = ("val_fraction", "classes_subset")  # what else chose the data of a training


# the same of a network that is trained already: what its checkpoint recorded is its default
AS_TRAINED = tuple(
    dataclasses.replace(f, default=None, help=f"{f.help} (default: as in training, else {f.default})")
    if f.dest == "sampling"
    else f
    for f in DATA
)


def add_data_set(parser: argparse._ActionsContainer, otherwise: str = "cifar100") -> None:
    """The flags that choose a trained network's data, by default those of its training."""
    parser.add_argument(
        "--dataset", help=f"data set (default: that of the checkpoint's training, else {otherwise}), see --list"
    )
    parser.add_argument(
        "--val_fraction", type=float, help="evaluate on this share of train (default: as in training; 0: the test set)"
    )
    parser.add_argument("--classes_subset", help="classes of ImageNet (default: as in training)")


def dataset_of(path: str | Path, given: str | None, otherwise: str = "cifar100") -> str:
    """The name of the data set to use with a checkpoint: the given one, else what its training recorded."""
    if given is None and (recorded := read_checkpoint(path).meta.get("dataset")) is not None:
        if recorded == "unlabelled":
            raise UserError(f"{path} was trained on images without labels: name a labelled set with --dataset")
        log.info("data set as in training: %s", recorded)
        return str(recorded)
    return given or otherwise


def add_as_trained(parser: argparse._ActionsContainer) -> None:
    """For scripts that look at a trained network: its data set and how clips are read, by default as in training."""
    from core.option import add_flags

    add_data_set(parser)
    clips = parser.add_argument_group("lists of videos")
    clips.add_argument("--num_segments", type=int, help="frames of a clip (default: as in training, else 8)")
    clips.add_argument("--num_workers", type=int, default=0, help="loader processes, for data read from disk")
    clips.add_argument("--skip_corrupt", "--skip_bad", action="store_true", help="leave out what cannot be read")
    add_flags(clips, AS_TRAINED)


def clip_options(args: argparse.Namespace) -> dict[str, Any]:
    """What add_as_trained() was given, for helper.deploy.as_trained.options_as_trained."""
    names = ("num_segments", "num_workers", "skip_corrupt", "val_fraction", "classes_subset")
    same = {k: getattr(args, k) for k in names}
    return {**same, "more": {f.dest: getattr(args, f.dest) for f in AS_TRAINED}}


def recorded_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Entry of Batch.inputs -> per-sample shape, as the checkpoint's run recorded them; {} where it did not."""
    shapes = read_checkpoint(path).meta.get("shapes", {})
    return {k: tuple(v) for k, v in shapes.items()}


def options_as_trained(path: str | Path, root: Path, image_size: int | None = None, **given: Any) -> DataOptions:
    """The data of a checkpoint: whatever is None or absent in `given` is as its training recorded it, if it did.

    Of images that is their size, the held-out share and the subset of classes, of action recordings everything.
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
    """Settings of lists of videos, those that are None or absent as the checkpoint recorded them.

    same_size: whether clips are cropped to the side of training; the shorter side of frames goes with that.
    """
    recorded = {k: meta[k] for k in ("sampling", "short_side") if k in meta and (same_size or k == "sampling")}
    return {**more, **{k: v for k, v in recorded.items() if more.get(k) is None}}


def clip_settings_notice(path: str | Path, options: DataOptions) -> str | None:
    """One line on the clips a network of videos is evaluated on, where its checkpoint says what it was trained on:
    that they are the same, or each difference. None where it does not say, or reads no list of videos."""
    meta, shapes = read_checkpoint(path).meta, recorded_shapes(path)
    if "video" not in shapes or "sampling" not in meta:
        return None
    frames, *_, side = shapes["video"]
    trained = {"num_segments": frames, "image_size": side} | {k: meta[k] for k in ("sampling", "short_side")}
    now = {"num_segments": options.num_segments, "image_size": options.image_size, **options.more}
    others = [f"--{k} {now[k]} (trained with {v})" for k, v in trained.items() if now.get(k) not in (None, v)]
    if others:
        return f"evaluated otherwise than trained: {', '.join(others)}"
    return f"as trained: {frames} frames of {side} px, {meta['sampling']} sampling, shorter side {meta['short_side']}"
