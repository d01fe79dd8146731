"""A method's Config fields as flags, and the weights of its terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.option import RESULT, UNSET, Flag, flag_of, option
from core.protocols import UserError
from dataset import recipe
from dataset.recipes import LARGE, SMALL
from distiller_zoo import method_dict
from distiller_zoo._combined import Combined, CombinedConfig, common_weights
from distiller_zoo.base import Distiller, LossConfig


@dataclass(frozen=True)
class WeightConfig(LossConfig):
    """Weights and settings of the loss, for all methods."""

    weight: list[str] | None = option(
        None,
        "weights of the terms of a combination, such as crd=0.8 at=500 (default: the methods')",
        role=RESULT,
        metavar="TERM=WEIGHT",
    )
    protocol: str = option(
        "simkd",
        "default weights: simkd adds cross-entropy and the logit KL to most methods; authors uses each publication's "
        "weights; modern is simkd with AdamW, a cosine with warm-up, drop path, RandAugment, MixUp, CutMix, label "
        "smoothing and a moving average of the weights",
        choices=("simkd", "authors", "modern"),
        role=RESULT,
    )


# settings of --protocol modern, in addition to the weights of --protocol simkd; for batches of 256. Those that need a
# label of every sample, or images, are left out where the data has none
MODERN_LABELS: Mapping[str, Any] = {"label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0}
MODERN_IMAGES = ("augment", "mixup", "cutmix")
MODERN: Mapping[str, Any] = {
    **MODERN_LABELS,
    "augment": "randaugment",
    "drop_path": 0.1,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "norm_weight_decay": 0.0,
    "schedule": "cosine",
    "warmup_epochs": 5,
    "batch_size": 256,
    "ema": 0.999,
    "clip_grad": 5.0,
}


def modern(dataset: str, unlabelled: bool) -> dict[str, Any]:
    """MODERN as far as the data allows. unlabelled: whether some images have no label."""
    left_out = set(MODERN_LABELS) if unlabelled else set()
    left_out |= set() if recipe(dataset) in (SMALL, LARGE) else set(MODERN_IMAGES)
    return {k: v for k, v in MODERN.items() if k not in left_out}


def own_flags(method: type[Distiller]) -> dict[str, Flag]:
    """Config field -> flag, for the settings of a method; they exist if --distill names it."""
    common = {f.name for f in dataclasses.fields(Distiller.Config)}
    own = (f for f in dataclasses.fields(method.Config) if f.name not in common)
    return {f.name: dataclasses.replace(flag_of(f, prefix=f"{method.name}_"), role=RESULT) for f in own}


def flags_of(method: type[Distiller]) -> list[Flag]:
    """The own flags of a method."""
    return list(own_flags(method).values())


def methods_named(name: str) -> list[type[Distiller]]:
    """'kd+at' -> the classes of kd and at. UserError for an unknown name."""
    return [method_dict[part] for part in name.split("+")]


def share_of_weight_flag(pairs: Any, methods: Sequence[type[Distiller]]) -> Any:
    """The part of --weight for these methods, and for cls and div."""
    if pairs is UNSET:
        return UNSET
    known = {m.name for m in methods}
    every = {m for m in method_dict} - known
    mine = [p for p in pairs if method_dict.aliases.get(p.partition("=")[0], p.partition("=")[0]) not in every]
    return mine or UNSET


def default_weights(methods: Sequence[type[Distiller]], protocol: str) -> dict[str, float]:
    """Default weights of the method, and its settings that the protocol changes. For combinations: common_weights()."""
    rows = []
    for m in methods:
        own, authors = own_flags(m), m.Config.authors if protocol == "authors" else {}
        row = {"cls": m.Config.cls, "div": m.Config.div, "beta": m.Config.beta, "kd_T": m.Config.kd_T}
        rows.append(row | {own[k].dest if k in own else k: v for k, v in authors.items()})
    if len(rows) == 1:
        return rows[0]
    return {k: v for row in rows for k, v in row.items()} | common_weights(methods, rows)


def method_config(values: Mapping[str, Any], methods: Sequence[type[Distiller]], teacher: bool) -> Any:
    """The Config of a method or of a combination. values: flag -> value. UserError if members exclude each other."""

    def fields_of(method: type[Distiller]) -> dict[str, Any]:
        return {name: values[flag.dest] for name, flag in own_flags(method).items()}

    if teacher:
        return methods[0].Config(class_weight=values["class_weight"], **fields_of(methods[0]))
    common = {f.name: values[f.name] for f in dataclasses.fields(Distiller.Config) if f.name != "beta"}
    if len(methods) == 1:
        return methods[0].Config(beta=values["beta"], **common, **fields_of(methods[0]))
    weights = {m.name: m.Config.beta * values["beta"] for m in methods} | {
        k: v for k, v in term_weights(values["weight"]).items() if k not in ("cls", "div")
    }
    members = tuple((m, m.Config(beta=weights[m.name], **common, **fields_of(m))) for m in methods)
    config = CombinedConfig(beta=values["beta"], members=members, **common)
    Combined.check(config)
    return config


def term_weights(pairs: Sequence[str] | None) -> dict[str, float]:
    """["crd=0.8", "cls=1"] -> {"crd": 0.8, "cls": 1.0}, aliases resolved."""
    weights: dict[str, float] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(
                f"--weight takes NAME=NUMBER, such as crd=0.8, not {pair}; for weight decay use --weight_decay"
            )
        name = name if name in ("cls", "div") else method_dict.resolve(name)
        if name in weights:
            raise UserError(f"--weight names {name} twice: give it one number")
        try:
            weights[name] = float(value)
        except ValueError:
            raise UserError(f"--weight {pair} must have the form NAME=NUMBER, such as crd=0.8") from None
    return weights


def weights_from_flag(values: Mapping[str, Any], methods: Sequence[type[Distiller]]) -> dict[str, float]:
    """Apply --weight to cls and div, and to beta for a single method; members of a combination read it themselves."""
    weights = term_weights(values["weight"])
    names = [m.name for m in methods]
    stray = weights.keys() - {"cls", "div", *names}
    if stray:
        raise UserError(f"--weight names {', '.join(sorted(stray))}, but the terms are cls, div, {', '.join(names)}")
    if silent := [m.name for m in methods if m.name in weights and m.terms is Distiller.terms]:
        raise UserError(
            f"--weight names {', '.join(silent)}, which has no own term: give the weight of cls (cross-entropy) or div "
            "(the logit KL) instead"
        )
    flags = {k: v for k, v in weights.items() if k in ("cls", "div")}
    if len(names) == 1 and names[0] in weights:
        flags["beta"] = weights[names[0]]
    return flags
