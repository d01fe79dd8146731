"""A parser whose error about an unknown flag names the flag to type: from a table for other toolboxes, or a similar
one."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

STUDENT, TEACHER, TEST = "train_student.py", "train_teacher.py", "test_model.py"

UNUSED = "not needed: leave it out"

# flag of SimKD, RepDistiller, SemCKD, CAKD, HSAKD, DPCD, VSKD, TRN, MMRazor or MMAction2 -> the flag to type
OLD = {
    **dict.fromkeys(("--checkpoint_dir", "--output_dir", "--save_dir", "--work_dir"), "--save_root"),
    **dict.fromkeys(("--root_log", "--root_model", "--root_output"), "--save_root"),
    **dict.fromkeys(("--data_path", "--video_teacher_train_path", "--video_teacher_test_path"), "--data_folder"),
    **dict.fromkeys(("--video_train_path", "--video_test_path"), "--data_folder"),
    **dict.fromkeys(("--watch_train_path", "--watch_test_path"), "--data_folder"),
    **dict.fromkeys(
        ("--milestones", "--lr_step_size", "--lr_steps"),
        "--lr_decay_epochs, with commas: --lr_decay_epochs 150,180,210",
    ),
    **dict.fromkeys(("--lr_gamma", "--lr_decay_gamma"), "--lr_decay_rate"),
    **dict.fromkeys(("--lr_type", "--lr_scheduler"), "--schedule"),
    **dict.fromkeys(("--ra_sampler", "--ra_reps"), "--repeated_augmentation"),
    **dict.fromkeys(("--model_ema", "--model_ema_decay", "--model_ema_steps"), "--ema and --ema_every (docs/cakd.md)"),
    **dict.fromkeys(("--evaluate", "--test_only"), "a separate program, test_model.py --path FILE"),
    **dict.fromkeys(("--launcher", "--gpus"), "--gpu_id 0,1,2,3 --multiprocessing_distributed, or torchrun"),
    **dict.fromkeys(("--partition", "--gpus_per_node"), "flags of a separate program, scripts/slurm/submit.py"),
    **dict.fromkeys(("--sgdr_t", "--lr_warmup_method", "--start_epoch", "--cache_dataset", "--local_rank"), UNUSED),
    **dict.fromkeys(("--num_classes", "--iter_per_epoch", "--recall", "--no_partialbn", "--diff_rank_seed"), UNUSED),
    **dict.fromkeys(("--triplet_ratio", "--triplet_sample", "--triplet_margin", "--at_ratio"), UNUSED),
    **dict.fromkeys(("--dark_ratio", "--dark_alpha", "--dark_beta", "--student_base"), UNUSED),
    **dict.fromkeys(("--train_crop_size", "--val_crop_size", "--val_resize_size"), "--image_size"),
    **dict.fromkeys(("--hkd_initial_weight", "--hkd_decay"), "--hkd_layer_weights"),
    **dict.fromkeys(("--clip_grad_norm", "--clip_gradient", "--gd"), "--clip_grad"),
    **dict.fromkeys(("--workers", "-j"), "--num_workers"),
    **dict.fromkeys(("--dropout", "--do"), "part of the network: leave it out"),
    **dict.fromkeys(("--consensus_type", "--img_feature_dim"), "part of the network: --model trn_bninception_256"),
    "--tarch": "--model_t, or nothing: the checkpoint of --path_t names its network",
    "--tcheckpoint": "--path_t",
    "--video_base": "--model_t, or nothing: the checkpoint of --path_t names its network",
    "--watch_base": "--model_s",
    "--dist_ratio": "--dask_distance",
    "--angle_ratio": "--dask_angle",
    "--load": "--pretrained",
    "--device": "--gpu_id",
    "--use_deterministic_algorithms": "--deterministic",
    "--ra_magnitude": "--augment_magnitude",
    "--interpolation": "bilinear: leave it out",
    "--init_lr": "--learning_rate",
    "--lr_warmup_epochs": "--warmup_epochs",
    "--lr_warmup_decay": "--warmup_start",
    "--wd": "--weight_decay",
    "--mixup_alpha": "--mixup",
    "--cutmix_alpha": "--cutmix",
    "--auto_augment": "--augment",
    "--amp": "--precision bf16",
    "--cfg_options": "one flag per setting, such as --learning_rate 0.01",
    "--auto_scale_lr": "--learning_rate, scaled by hand",
}
ARCH = {STUDENT: "--model_s", TEACHER: "--model"}
ONLY = {
    STUDENT: {"--modality": "--modality_s, such as --modality_s accel"},
    TEACHER: {**dict.fromkeys(("--tarch", "--tcheckpoint"), f"of a student: use {STUDENT}"), "--kd_T": UNUSED},
    TEST: {"--checkpoint": "--path"},
}


class Parser(argparse.ArgumentParser):
    """argparse, except that the error about an unknown flag names the one to type."""

    def known(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def hint(self, token: str) -> str:
        """(--arch is --model_s), or the nearest flag; "" if there is none. token: a flag without its value."""
        old = OLD | ({"--arch": ARCH[self.prog]} if self.prog in ARCH else {}) | ONLY.get(self.prog, {})
        if token in old:
            return f" ({token} is {old[token]})"
        near = difflib.get_close_matches(token, self.known(), n=1, cutoff=0.7)
        return f" (did you mean {near[0]} for {token}?)" if near else ""

    def error(self, message: str) -> NoReturn:
        kind, _, rest = message.partition(": ")
        tokens = rest.split() if kind == "unrecognized arguments" else rest.split()[:1] * (kind == "ambiguous option")
        for token in dict.fromkeys(t.split("=")[0] for t in tokens if t.startswith("-")):
            message += self.hint(token)
        if message == "argument --resume: expected one argument":
            message += " (leave it out: the same command resumes its run)"
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")
