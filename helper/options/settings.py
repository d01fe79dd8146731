"""The resolved settings of one run: one frozen Config for each component, and the source of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from core.option import RESULT, Flag, flags_in, flat
from dataset.base import RecordingConfig, SourceConfig, StreamConfig, UnlabelledConfig, VideoConfig
from dataset.mixing import MixingConfig
from distiller_zoo.base import Distiller, LabelLossConfig
from helper.machine.devices import DeviceConfig
from helper.machine.distributed import LaunchConfig, RanksConfig
from helper.machine.kernels import KernelConfig
from helper.machine.seeding import trial_seed
from helper.networks.load import TrainStudentNetwork, TrainTeacherNetwork
from helper.networks.teacher_cache import CacheConfig
from helper.networks.teacher_sources import TeacherConfig
from helper.options.method_flags import WeightConfig
from helper.runs.folder import RunConfig
from helper.runs.trackers import TrackerConfig
from helper.training.stages import TrainingConfig


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data."""

    source: SourceConfig
    stream: StreamConfig
    recordings: RecordingConfig
    video: VideoConfig
    mixing: MixingConfig
    unlabelled: UnlabelledConfig


@dataclass(frozen=True)
class MachineConfig:
    """Settings of the machine: device, kernels, processes."""

    device: DeviceConfig
    kernels: KernelConfig
    launch: LaunchConfig
    ranks: RanksConfig


@dataclass(frozen=True)
class Configs:
    """Settings of both training scripts."""

    run: RunConfig
    data: DataConfig
    training: TrainingConfig
    labels: LabelLossConfig
    machine: MachineConfig
    tracker: TrackerConfig


@dataclass(frozen=True)
class TrainTeacherConfigs(Configs):
    """Settings of train_teacher.py, which has no teacher."""

    network: TrainTeacherNetwork
    loss: ClassVar = WeightConfig()
    teacher: ClassVar = TeacherConfig()
    cache: ClassVar = CacheConfig()


@dataclass(frozen=True)
class TrainStudentConfigs(Configs):
    """Settings of train_student.py."""

    network: TrainStudentNetwork
    loss: WeightConfig
    teacher: TeacherConfig
    cache: CacheConfig


# the order of settings in the names of existing runs, which stays: never add to it, newer settings follow in the order
# of their Configs
NAME_ORDER = (
    *("modality", "modality_s", "modality_t", "teacher_weight", "weight", "kd_T", "logit_stand", "protocol"),
    *("fold_teacher", "init_epochs", "image_size", "data_split", "num_segments", "window", "val_fraction", "few_ratio"),
    *("batch_size", "epochs", "learning_rate", "lr_decay_epochs", "lr_decay_rate", "schedule", "lr_min"),
    *("warmup_epochs", "warmup_start", "optimizer", "norm_weight_decay", "clip_grad", "ema", "ema_every"),
    *("label_smoothing", "mixup", "cutmix", "weight_decay", "momentum", "nesterov", "accumulate", "seed", "precision"),
    *("eval_precision", "deterministic", "max_steps", "classes_subset", "augment", "random_erase"),
    *("repeated_augmentation", "sync_bn", "short_side", "sampling", "train_crop", "no_flip", "flip_pairs", "decoder"),
    *("param_groups", "pretrained", "frame_logits", "teacher_dropout", "quantize"),
)

# the page of --help: heading -> flags; --help_all shows every flag under the heading of its Config
COMMON = {
    "run": ("trial", "trials", "save_root", "name", "resume", "overwrite", "dry_run", "max_steps"),
    "data": ("dataset", "data_folder", "num_workers"),
    "networks": ("model", "model_s", "path_t", "teacher_cache"),
    "method": ("distill", "cls", "div", "beta", "kd_T", "weight"),
    "optimisation": ("epochs", "batch_size", "learning_rate", "lr_decay_epochs", "schedule", "weight_decay"),
    "regularisation": ("label_smoothing", "mixup", "augment"),
    "speed": ("gpu_id", "precision"),
    "several processes": ("multiprocessing_distributed",),
    "video and recordings": ("num_segments", "modality", "modality_s", "modality_t"),
}


def common_flags(kind: type[Configs]) -> tuple[Flag, ...]:
    """The flags of a script without those of methods, in the order of run names."""
    place = {name: i for i, name in enumerate(NAME_ORDER)}
    return tuple(sorted(flags_in(kind), key=lambda flag: place.get(flag.dest, len(place))))


def given_by_user(values: Mapping[str, Any], defaults: Mapping[str, Any], sources: Mapping[str, str]) -> set[str]:
    """Flags given on the command line, and those that a file sets to a value other than the default."""
    moved = {k for k, source in sources.items() if source == "file" and values.get(k) != defaults.get(k)}
    return moved | {k for k, source in sources.items() if source == "command line"}


@dataclass(frozen=True)
class Settings:
    """configs: one Config for each component; its parts are also attributes here (settings.training.optim.momentum).

    method, config: class and configuration of the method. method_flags: dest -> value of its own flags.
    defaults: flag -> default value. sources: flag -> "command line", "file", "model recipe", "data set
    recipe", "protocol", "method" or "default". without_effect: flag -> reason. label: of this student among jointly
    trained ones.
    """

    configs: TrainTeacherConfigs | TrainStudentConfigs
    method: type[Distiller]
    config: Any
    method_flags: Mapping[str, Any]
    defaults: Mapping[str, Any]
    sources: Mapping[str, str]
    command: list[str] = field(default_factory=list)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    @property
    def run(self) -> RunConfig:
        return self.configs.run

    @property
    def data(self) -> DataConfig:
        return self.configs.data

    @property
    def training(self) -> TrainingConfig:
        return self.configs.training

    @property
    def machine(self) -> MachineConfig:
        return self.configs.machine

    @property
    def is_teacher(self) -> bool:
        return isinstance(self.configs, TrainTeacherConfigs)

    @property
    def model(self) -> str:
        """The registry name of the trained network."""
        network = self.network
        return network.model if isinstance(network, TrainTeacherNetwork) else network.model_s

    @property
    def distill(self) -> str:
        return self.network.distill

    @property
    def network(self) -> TrainTeacherNetwork | TrainStudentNetwork:
        return self.configs.network

    @property
    def loss(self) -> WeightConfig:
        return self.configs.loss

    @property
    def teacher(self) -> TeacherConfig:
        return self.configs.teacher

    @property
    def cache(self) -> CacheConfig:
        return self.configs.cache

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of recordings: that of the trained network, then that of its teacher."""
        network = self.network
        if isinstance(network, TrainTeacherNetwork):
            named: tuple[str | None, ...] = (network.modality,)
        else:
            named = (network.modality_s, network.modality_t)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    @property
    def pretrained_backbone(self) -> str | None:
        network = self.network
        return network.pretrained_backbone if isinstance(network, TrainTeacherNetwork) else None

    def as_dict(self) -> dict[str, Any]:
        """Flag -> value, including the method's own."""
        return flat(self.configs) | dict(self.method_flags)

    @property
    def identity(self) -> dict[str, Any]:
        """Every value that changes what the run computes."""
        values = flat(self.configs)
        return {f.dest: values[f.dest] for f in common_flags(type(self.configs)) if f.role} | dict(self.method_flags)

    @property
    def given(self) -> set[str]:
        """Flags that the user set."""
        return given_by_user(self.as_dict(), self.defaults, self.sources)

    def off_default(self) -> dict[str, Any]:
        """Settings that the user changed from the default and that the published run-name template lacks."""
        values = self.as_dict()
        counted = [f.dest for f in common_flags(type(self.configs)) if f.role == RESULT]
        given = self.given - set(self.without_effect)
        moved = {
            k: values[k] for k in (*counted, *self.method_flags) if k in given and values[k] != self.defaults.get(k)
        }
        if "seed" in moved and moved["seed"] == trial_seed(self.run.trial):
            del moved["seed"]
        return moved
