"""Data settings of a trained network: recorded in its checkpoint, or given."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.log import log
from core.option import Flag, add_flags, checked, flags_in, flat, share
from core.protocols import DataSet, UserError
from dataset import dataset_dict
from dataset.base import DataOptions, RecordingConfig, VideoConfig, data_options, few_workers, image_side
from dataset.clips.video import FOUND_BY, LISTS
from helper.networks.checkpoint import CheckpointOf, read_checkpoint

CHOSEN = ("val_fraction", "val_dir", "classes_subset")  # further settings that choose the training data


def _as_trained(flag: Flag) -> Flag:
    """The flag for a trained network, whose checkpoint records the default."""
    text, _, otherwise = flag.help.partition(" (default: ")
    default = otherwise.removesuffix(")") or flag.default
    return dataclasses.replace(flag, default=None, help=f"{text} (default: as in training, or {default})")


AS_TRAINED = tuple(
    _as_trained(f) if f.dest in ("num_segments", "sampling", *LISTS, *FOUND_BY) else f
    for f in (*flags_in(RecordingConfig), *flags_in(VideoConfig))
    if f.dest not in ("data_split", "window", "clip_cache")
)


def add_network(
    parser: argparse._ActionsContainer,
    help: str,
    path: Sequence[str] = ("--path",),
    model: Sequence[str] = ("--model",),
    nargs: str | None = None,
) -> None:
    """Add the flags that name a trained network. path, model: their spellings. nargs: of path, + for several."""
    parser.add_argument(*path, required=True, action=CheckpointOf, nargs=nargs, help=help, metavar="FILE")
    parser.add_argument(*model, help="architecture, if neither the file nor its path names it", metavar="NAME")


def add_data_set(
    parser: argparse._ActionsContainer, otherwise: str = "cifar100", folder: Sequence[str] = ("--data_folder",)
) -> None:
    """Add the flags that choose a trained network's data; the defaults are those of its training.

    folder: spellings of the folder's flag; () leaves out folder and size of the images."""
    if folder:
        text = "folder of the data sets (default ../data/)"
        parser.add_argument(*folder, default="../data/", help=text, metavar="FOLDER")
        text = "size of the images in pixels (default: as in training)"
        parser.add_argument("--image_size", type=int, action=checked(image_side), help=text)
    parser.add_argument(
        "--dataset",
        help=f"data set (default: that of the checkpoint's training, or {otherwise}); --list shows all",
        metavar="NAME",
    )
    parser.add_argument(
        "--val_fraction",
        type=float,
        action=checked(share),
        help="evaluate on this held-out share of the training set (default: as in training; 0: the test set)",
    )
    parser.add_argument(
        "--val_dir", help="folder of an image tree to evaluate on (default: as in training)", metavar="FOLDER"
    )
    parser.add_argument("--classes_subset", help="classes of ImageNet (default: as in training)", metavar="CLASSES")


def dataset_of(path: str | Path, given: str | None, otherwise: str = "cifar100") -> str:
    """The data set for a checkpoint: the given one, or the one that its training recorded."""
    if given is None and (recorded := read_checkpoint(path).meta.get("dataset")) is not None:
        if recorded == "unlabelled":
            raise UserError(f"{path} was trained on images without labels: name a labelled set with --dataset")
        log.info("data set as in training: %s", recorded)
        return str(recorded)
    return given or otherwise


def add_as_trained(parser: argparse._ActionsContainer) -> None:
    """Add flags for scripts that read a trained network: its data set and clip settings, by default as in training."""
    add_data_set(parser)
    clips = parser.add_argument_group("lists of videos")
    clips.add_argument(
        "--num_workers",
        type=int,
        action=checked(few_workers),
        default=0,
        help="loader processes, for data read from disk",
    )
    clips.add_argument("--skip_corrupt", "--skip_bad", action="store_true", help="skip videos that cannot be read")
    add_flags(clips, AS_TRAINED)


def options_asked(path: str | Path, args: argparse.Namespace, **more: Any) -> DataOptions:
    """The data options that the flags of add_as_trained() choose, by default those of the checkpoint's training. more:
    in place of flags."""
    names = {
        "num_workers",
        "skip_corrupt",
        "modality",
        "data_split",
        "clip_cache",
        *CHOSEN,
        *(f.dest for f in AS_TRAINED),
    }
    given = {k: v for k, v in vars(args).items() if k in names} | more
    return options_as_trained(path, Path(args.data_folder), args.image_size, **given)


def open_as_trained(path: str | Path, args: argparse.Namespace) -> tuple[DataSet, DataOptions]:
    """The data set that add_as_trained()'s flags choose, and its options."""
    options = options_asked(path, args)
    return dataset_dict[dataset_of(path, args.dataset)](options), options


def recorded_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Entry of Batch.inputs -> per-sample shape, recorded by the checkpoint's run; {} if it did not."""
    shapes = read_checkpoint(path).meta.get("shapes", {})
    return {k: tuple(v) for k, v in shapes.items()}


def chosen_as_trained(meta: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that chose the data: as given, else as recorded in a checkpoint; the log names the recorded ones."""
    chosen = {k: v for k in CHOSEN if (v := given.get(k)) is not None}
    evaluated = [k for k in ("val_fraction", "val_dir") if k in chosen]  # one of them replaces the other
    for name in CHOSEN:
        if meta.get(name) and name not in chosen and not (evaluated and name.startswith("val_")):
            log.info("as in training: --%s %s", name, meta[name])
            chosen[name] = meta[name]
    return chosen


def options_as_trained(path: str | Path, root: Path, image_size: int | None = None, **given: Any) -> DataOptions:
    """The data of a checkpoint: values that are None or absent in `given` are taken from the record of its training.

    For images: size, held-out share and subset of classes; for action recordings: everything.
    """
    meta, shapes = read_checkpoint(path).meta, recorded_shapes(path)
    read, image, video, sensor = (shapes.get(k or "") for k in (meta.get("reads"), "image", "video", "sensor"))
    modality = given.pop("modality", None) or (meta.get("modalities", {}).get(meta["reads"]) if read else None)
    given = {k: v for k, v in given.items() if k not in CHOSEN and v is not None} | chosen_as_trained(meta, given)
    recorded = {
        "num_segments": video[0] if video else None,
        "window": sensor[-1] if sensor else None,
        **{name: meta.get(name) for name in ("data_split", "reduced_decode")},
        **{name: meta.get(name) for name in ("sampling", *FOUND_BY)},
        **lists_as_trained(meta, given, root),
    }
    if image_size in (None, video[-1] if video else None):  # clips are cropped to the side of training
        recorded["short_side"] = meta.get("short_side")
    return data_options(
        root,
        image_size=image_size or next((shape[-1] for shape in (video, image) if shape), None),
        modality=(modality,) if modality else (),
        **(recorded | given),
    )


def lists_as_trained(meta: Mapping[str, Any], given: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The lists of videos that training used and that are not given now; a list that no longer exists is taken from the
    data folder."""
    found = {}
    for name in (k for k in LISTS if k in meta and k not in given):
        places = Path(meta[name]), root / Path(meta[name]).name
        if path := next((p for p in places if p.is_file()), None):
            log.info("as in training: --%s %s", name, path)
            found[name] = str(path)
        else:
            log.info("the --%s of training, %s, does not exist: the list in the data folder is read", name, meta[name])
    return found


def clip_settings_notice(path: str | Path, options: DataOptions) -> str | None:
    """One line that compares the clips of evaluation with those of training: equal, or each difference. None if the
    checkpoint has no record, or the network reads no list of videos."""
    meta, shapes = read_checkpoint(path).meta, recorded_shapes(path)
    if "video" not in shapes or "sampling" not in meta:
        return None
    frames, *_, side = shapes["video"]
    trained = {"num_segments": frames, "image_size": side} | {k: meta[k] for k in ("sampling", "short_side")}
    now = {"image_size": options.image_size, **flat(options.recordings), **flat(options.video)}
    others = [f"--{k} {now[k]} (trained with {v})" for k, v in trained.items() if now.get(k) not in (None, v)]
    if others:
        return f"evaluation differs from training: {', '.join(others)}"
    return f"as trained: {frames} frames of {side} px, {meta['sampling']} sampling, shorter side {meta['short_side']}"
