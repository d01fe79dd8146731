"""Flags of video data sets and of the published video recipes; part of every script's table."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from helper.flags import Flag, _switch

# settings that the data set reads (DataOptions.more)
DATA = (
    Flag(("--train_list",), None, "list of training videos (default: the published name, or train.txt)"),
    Flag(("--test_list",), None, "list of test videos (default: the published name, or test.txt)"),
    Flag(("--short_side",), None, "shorter side of frames before the crop (default 256 at 224)", int, result=True),
    Flag(
        ("--sampling",),
        "uniform",
        "frames from the whole video, or dense: from 64 successive ones, in evaluation from frame 0 on",
        choices=("uniform", "dense"),
        result=True,
    ),
    Flag(
        ("--train_crop",),
        "multiscale13",
        "crop of training clips: MultiScaleCrop at 13 places (TSM) or 5 (TSN), RandomResizedCrop, or the centre",
        choices=("multiscale13", "multiscale5", "resized", "centre"),
        result=True,
    ),
    _switch(("--no_flip",), "never mirror clips", result=True),
    Flag(
        ("--flip_pairs",),
        "",
        "classes that change places in a mirrored clip, as 86:87,93:94,166:167 (default: none)",
        result=True,
    ),
    Flag(("--frame_template",), "img_{:05}.jpg", "file name of an extracted frame"),
    Flag(("--frame_cache",), None, "folder that keeps decoded frames, resized to --short_side, as uint8"),
    Flag(
        ("--decoder",),
        "av",
        "what decodes videos: PyAV, or OpenCV (opencv-python-headless)",
        choices=("av", "opencv"),
        result=True,
    ),
    _switch(("--seek",), "go to the key frame before a wanted frame instead of decoding up to it; the same pixels"),
)

# the same of a network that is trained already: what its checkpoint recorded is its default
AS_TRAINED = tuple(
    dataclasses.replace(f, default=None, help=f"{f.help} (default: as in training, else {f.default})")
    if f.dest == "sampling"
    else f
    for f in DATA
)


def add_as_trained(parser: argparse._ActionsContainer) -> None:
    """For scripts that look at a trained network: how clips are read, by default as it was trained."""
    from helper.options import add_flags

    clips = parser.add_argument_group("lists of videos")
    clips.add_argument("--num_segments", type=int, help="frames of a clip (default: as in training, else 8)")
    clips.add_argument("--num_workers", type=int, default=0, help="loader processes, for data read from disk")
    clips.add_argument("--skip_corrupt", "--skip_bad", action="store_true", help="leave out what cannot be read")
    add_flags(clips, AS_TRAINED)


def of_clips(args: argparse.Namespace) -> dict[str, Any]:
    """What add_as_trained() was given, for helper.export.options_as_trained."""
    same = {k: getattr(args, k) for k in ("num_segments", "num_workers", "skip_corrupt")}
    return {**same, "more": {f.dest: getattr(args, f.dest) for f in AS_TRAINED}}


# settings of the optimiser and the start
RECIPE = (
    Flag(
        ("--param_groups",),
        "one",
        "tsm: biases at twice the rate, no decay on biases and batch norm; tsm_fc5: also the classifier at five times",
        choices=("one", "tsm", "tsm_fc5"),
        result=True,
    ),
    Flag(
        ("--pretrained",),
        None,
        "weights to start from, all but the classifier: a checkpoint of a known layout, or torchvision's, imagenet for "
        "IMAGENET1K_V1 and others by name, as imagenet:IMAGENET1K_V2",
        result=True,
    ),
)

VIDEO = (*DATA, *RECIPE)
STUDENT_VIDEO = (
    _switch(
        ("--frame_logits",), "compare the scores of every frame, not of the clip, in every logit loss", result=True
    ),
    _switch(
        ("--teacher_dropout",),
        "leave the teacher's dropout and drop path on, as MMRazor does (its batch norm is off)",
        result=True,
    ),
)
