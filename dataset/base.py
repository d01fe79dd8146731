"""Shared by the data sets: options, and stratified selection.

Shape letters: N samples, n of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.machine import free
from core.option import (
    NAMED,
    RESULT,
    Around,
    Config,
    at_least,
    flags_in,
    option,
    parts_of,
    probability,
    read,
    share,
    share_above_0,
    within,
)
from core.protocols import UserError

LARGEST_IMAGE = 4096
image_side = at_least(8, LARGEST_IMAGE)
few_workers = at_least(0, 1024)


@dataclass(frozen=True)
class SourceConfig(Config):
    """The data set, and the part of it to use."""

    heading = "data"

    dataset: str = option("cifar100", "data set; --list shows all", role=NAMED, metavar="NAME")
    data_folder: str = option("../data/", "folder that holds data sets", short="--data", metavar="FOLDER")
    image_size: int | None = option(
        None,
        "side of the images in pixels (default: 224 for imagenet and clips, 64 for tinyimagenet, 96 for stl10, "
        "else 32)",
        check=image_side,
        role=RESULT,
    )
    val_fraction: float = option(
        0.0, "hold out this stratified share of the training set and evaluate on it", check=share, role=RESULT
    )
    val_dir: str | None = option(
        None,
        "folder next to train/ of an image tree to evaluate on (default: val, else test)",
        role=RESULT,
        metavar="FOLDER",
    )
    few_ratio: float = option(1.0, "train on this share of every class", check=share_above_0, role=RESULT)
    num_workers: int = option(
        8, "loader processes (or DALI threads) per machine, for data that is not held in memory", check=few_workers
    )

    def idle(self, around: Around) -> dict[str, str]:
        data, why = around.data, {}
        if not data.streamed and not data.videos:
            where = "held on the device" if "image" in data.shapes else "decoded before the training"
            why["num_workers"] = f"{around.dataset} is {where}"
        if data.name not in ("folder", "imagenet"):
            why["val_dir"] = f"{around.dataset} is not a tree of images"
        return why


@dataclass(frozen=True)
class StreamConfig(Config):
    """Data that is decoded while it is read: image folders, clips, recordings."""

    heading = "data that is decoded while it is read"

    dali: str | None = option(
        None, "decode training images with DALI on the CPU or the GPU", choices=("cpu", "gpu"), role=NAMED
    )
    classes_subset: str | None = option(
        None, "classes of ImageNet to use: a number, or names such as a,b,c", role=RESULT, metavar="CLASSES"
    )
    skip_corrupt: bool = option(
        False,
        "skip and count images, videos and recordings that cannot be read or have no counterpart",
        short="--skip_bad",
    )
    augment: str = option(
        "none",
        "augmentation in addition to crop and flip: randaugment, or for image folders decoded while they are read, the "
        "others",
        choices=("none", "randaugment", "trivialaugment", "autoaugment"),
        role=RESULT,
    )
    augment_ops: int = option(2, "number of RandAugment operations per image", check=at_least(1, 14), role=RESULT)
    augment_magnitude: int = option(9, "magnitude of RandAugment, 0 to 30", check=at_least(0, 30), role=RESULT)
    random_erase: float = option(
        0.0, "probability of erasing a rectangle of a training image", check=probability, role=RESULT
    )
    repeated_augmentation: int = option(
        1, "number of augmented copies of each drawn sample in an epoch", check=at_least(1, 100), role=RESULT
    )
    reduced_decode: bool = option(
        False,
        "decode a JPEG file at 1/2, 1/4 or 1/8 of its sides where the crop keeps at least --image_size pixels a side",
        role=RESULT,
    )

    def idle(self, around: Around) -> dict[str, str]:
        data, numbers = around.data, ("augment_ops", "augment_magnitude")
        streamed = ("dali", "classes_subset", "random_erase", "repeated_augmentation", "reduced_decode")
        if "image" not in data.shapes:
            return dict.fromkeys((*streamed, "augment", *numbers), f"{around.dataset} holds no images")
        why = {} if self.augment == "randaugment" else dict.fromkeys(numbers, "--augment is not randaugment")
        if not data.streamed:
            held = f"{around.dataset} is held on the device"
            why |= dict.fromkeys(streamed, held)
            if data.name not in ("folder", "tinyimagenet"):  # decoded when they are opened
                why["skip_corrupt"] = held
            if self.augment != "randaugment":
                why["augment"] = f"{held}, where only randaugment works"
        return why


@dataclass(frozen=True)
class RecordingConfig(Config):
    heading = "recordings"

    data_split: str | None = option(
        None, "published split of action recordings (default: cross_subject)", role=RESULT, metavar="NAME"
    )
    num_segments: int = option(
        8,
        "frames that a network reads from each clip; a listed video with fewer frames repeats some",
        check=at_least(1, 1000),
        role=RESULT,
    )
    window: int | None = option(
        None, "length of a sensor window in samples (default 224)", check=at_least(8), role=RESULT
    )
    clip_cache: str | None = option("./cache/clips", "folder that stores decoded frames of videos", metavar="FOLDER")

    def idle(self, around: Around) -> dict[str, str]:
        images = "image" in around.data.shapes
        return self.every_flag(f"{around.dataset} holds no action recordings") if images else {}


@dataclass(frozen=True)
class VideoConfig(Config):
    heading = "video"

    train_list: str | None = option(
        None, "list of training videos (default: the published name, or train.txt)", metavar="FILE"
    )
    test_list: str | None = option(
        None, "list of test videos (default: the published name, or test.txt)", metavar="FILE"
    )
    short_side: int | None = option(
        None,
        "shorter side of frames before the crop (default: 256 with --image_size 224)",
        check=image_side,
        role=RESULT,
    )
    sampling: str = option(
        "uniform",
        "uniform: frames from the whole video; dense: from 64 successive frames, in evaluation from frame 0 on",
        choices=("uniform", "dense"),
        role=RESULT,
    )
    train_crop: str = option(
        "multiscale13",
        "crop of training clips: MultiScaleCrop at 13 positions (TSM) or 5 (TSN), RandomResizedCrop, or the centre",
        choices=("multiscale13", "multiscale5", "resized", "centre"),
        role=RESULT,
    )
    no_flip: bool = option(False, "never mirror clips", role=RESULT)
    flip_pairs: str = option(
        "",
        "classes to exchange in a mirrored clip, such as 86:87,93:94,166:167 (default: none)",
        role=RESULT,
        metavar="PAIRS",
    )
    frame_template: str = option("img_{:05}.jpg", "file name of an extracted frame", metavar="NAME")
    frame_cache: str | None = option(
        None, "folder that stores decoded frames, resized to --short_side, as uint8", metavar="FOLDER"
    )
    decoder: str = option(
        "av", "decoder of videos: PyAV, or OpenCV (opencv-python-headless)", choices=("av", "opencv"), role=RESULT
    )
    seek: bool = option(
        False, "seek to the key frame before a wanted frame instead of decoding all frames; the pixels are the same"
    )

    def idle(self, around: Around) -> dict[str, str]:
        return {} if around.data.videos else self.every_flag(f"{around.dataset} is not a list of videos")


@dataclass(frozen=True)
class UnlabelledConfig(Config):
    """Images without labels, and the evaluation of a student that learns from them alone."""

    heading = "images without labels"

    unlabelled: str | None = option(
        None,
        "folder of images (for videos by list, of videos) without labels, with any subfolders; all loss terms except "
        "the cross-entropy use them",
        role=RESULT,
        metavar="FOLDER",
    )
    label_ratio: float | None = option(
        None,
        "labelled share of each batch, with --unlabelled (default 0.5)",
        check=within(above=0, below=1),
        role=RESULT,
    )
    eval_probe: str | None = option(
        None,
        "labelled set that evaluates a student of --dataset unlabelled, by its frozen features",
        role=RESULT,
        metavar="NAME",
    )
    eval_probe_folder: str = option("../data/", "folder that holds the set of --eval_probe", metavar="FOLDER")
    eval_probe_head: str = option(
        "knn",
        "what --eval_probe fits to the features: knn (20 neighbours) or linear (logistic regression)",
        choices=("knn", "linear"),
        role=RESULT,
    )

    def idle(self, around: Around) -> dict[str, str]:
        return {} if self.unlabelled else {"label_ratio": "there is no --unlabelled"}


@dataclass(frozen=True)
class DataOptions:
    """How to open a data set. Raises UserError on a value out of range.

    root: the data folder. image_size: side in pixels of the square images; None: the data set's default. download:
    whether missing files may be fetched. val_fraction: share of the training set, stratified and fixed by seed 0, that
    is held out and replaces the test set, so that nothing is selected on test images.
    val_dir: of an image tree, the folder that is the test set; None: val/, else test/.
    few_ratio: share of the (remaining) training set to keep, stratified and fixed by `seed`; smaller ratios are
    subsets of larger ones. num_workers: decoding processes of this rank, or DALI threads.
    modality: for action recordings, names of the inputs, first that of the tested network, then the teacher's.
    """

    root: Path
    image_size: int | None = None
    download: bool = True
    val_fraction: float = 0.0
    val_dir: str | None = None
    few_ratio: float = 1.0
    seed: int = 0
    num_workers: int = 0
    modality: tuple[str, ...] = ()
    stream: StreamConfig = StreamConfig()
    recordings: RecordingConfig = RecordingConfig(clip_cache=None)
    video: VideoConfig = VideoConfig()
    unlabelled: UnlabelledConfig = UnlabelledConfig()

    def __post_init__(self) -> None:
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            raise UserError(f"image_size is {self.image_size}; give a side of 1 to {LARGEST_IMAGE} pixels")
        share("--val_fraction", self.val_fraction)
        share_above_0("--few_ratio", self.few_ratio)
        if self.val_fraction and self.val_dir:
            raise UserError(f"--val_fraction and --val_dir {self.val_dir} both choose the test images: leave one out")

    def evaluated_on(self, usual: str) -> str:
        """The name of the test set in tables."""
        return f"held-out {self.val_fraction:g} of train" if self.val_fraction else usual


def data_options(root: str | Path, **values: Any) -> DataOptions:
    """DataOptions from flags and their values, those of streams, recordings and videos included; None: the default."""
    given = {k: v for k, v in values.items() if v is not None}
    parts: dict[str, Any] = {
        name: read(kind, {"clip_cache": None} | {f.dest: given.pop(f.dest) for f in flags_in(kind) if f.dest in given})
        for name, kind in parts_of(DataOptions).items()
    }
    return DataOptions(Path(root), **parts, **given)


def stratified(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted positions [n] int64 of `fraction` of every class, rounded per class; nested for one seed."""
    rng = torch.Generator().manual_seed(seed)
    chosen = []
    for members in (torch.nonzero(labels == c).flatten() for c in labels.unique().tolist()):
        shuffled = members[torch.randperm(len(members), generator=rng)]
        chosen.append(shuffled[: int(len(members) * fraction + 0.5)])
    return torch.cat(chosen).sort().values


def hold_out(labels: Tensor, fraction: float, what: str = "image") -> tuple[Tensor, Tensor]:
    """Positions of (the remaining part, the held-out slice) of --val_fraction, stratified and fixed by seed 0;
    UserError if a part has no sample of a class. what: the word for a sample."""
    held = stratified(labels, fraction, seed=0)
    positions = torch.arange(len(labels))
    rest = positions[~torch.isin(positions, held)]
    for side, chosen in (("held-out", held), ("remaining", rest)):
        _refuse_empty(labels, chosen, f"--val_fraction {fraction:g}", f"{side} {what}")
    return rest, held


def few(labels: Tensor, ratio: float, seed: int, what: str = "image") -> Tensor:
    """Positions of the stratified subset of --few_ratio, fixed by `seed`; UserError if a class would be left empty."""
    kept = stratified(labels, ratio, seed)
    _refuse_empty(labels, kept, f"--few_ratio {ratio:g}", f"training {what}")
    return kept


def _refuse_empty(labels: Tensor, chosen: Tensor, setting: str, what: str) -> None:
    classes, counts = labels.unique(return_counts=True)
    if left := len(classes) - len(labels[chosen].unique()):
        raise UserError(
            f"{setting} leaves {left} of {len(classes)} classes without any {what} (the smallest class has "
            f"{counts.min()}); choose another value"
        )


def check_memory(counts: dict[str, int], size: int) -> None:
    """UserError if the images and the padded copy of "train" would take over half of the available memory."""
    pixels = sum(counts.values()) * size**2 + counts["train"] * (size + 2 * (size // 8)) ** 2
    needed, left = pixels * 3, free()
    if needed > left / 2:
        raise UserError(
            f"{sum(counts.values())} images at {size}x{size} need {needed / 2**30:.2f} GiB of memory, more than half "
            f"of the {left / 2**30:.2f} GiB available; choose a smaller --image_size or fewer images"
        )
