"""The (method, student, teacher) cases of the contract tests: every registry entry, and one toy of each family.

The networks have the stages and taps of those that they are named after, with fewer channels where there are many.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from unittest import mock

import pytest
import torch

from distiller_zoo import method_dict
from distiller_zoo._combined import Combined, CombinedConfig
from distiller_zoo.base import Distiller
from models import model_dict
from models.vgg import VGG
from tests.support.toys import (
    SENSOR,
    VIDEO,
    VIT,
    Critic,
    Factor,
    Mutual,
    Rotated,
    RotatedTeacher,
    TeacherView,
    ToyData,
    cnn,
    cnn_aux,
    network,
)

SMALL = {
    "cc": {"feat_dim": 4},
    "crd": {"nce_k": 8, "feat_dim": 4},
    "cakd": {"every": 1},
    "ldrld": {"top": 3},
    "queue": {"size": 16},
    "fcfd": {"paths": 6},
}  # settings that fit a toy data set


# methods that only compute terms, of logits: they hold nothing that several ranks, another loop or another kind of
# input could treat otherwise than kd
TERMS_ALONE = {
    name
    for name, method in method_dict.items()
    if method.__base__ is Distiller
    and method.teacher_mode == "frozen"
    and {n for n in vars(Distiller).keys() & vars(method).keys() if callable(getattr(method, n))}
    <= {"Config", "terms", "weights"}
}


def mostly(names):
    """Parameters of a test; what kd stands for is left to the slow sweep."""
    return [pytest.param(n, marks=pytest.mark.slow if n.split("-")[0] in TERMS_ALONE else ()) for n in names]


PAIRS = (("resnet8", "resnet8x4"), ("vgg8", "wrn_16_1"))  # student, teacher; the second pairs unequal stages
EQUAL_WIDTHS = (("resnet8", "resnet14"), ("vgg8", "vgg11"))
PAIRS_OF = {  # methods that compare channel by channel, or read a transformer
    "fsp": EQUAL_WIDTHS,
    "kdsvd": EQUAL_WIDTHS,
    "cakd": (("resnet8", "vit_micro_cifar"),),
    "fcfd": (("resnet8", "wrn_16_1"), ("vgg8", "vgg11")),
    "deit": (("vit_micro_cifar_distilled", "resnet8"),),
}
HEADS = (("resnet8_aux", "wrn_16_1_aux"),)  # methods that read auxiliary heads
PAIRS_OF |= dict.fromkeys(("hsakd_teacher", "hsakd", "hsakd_online"), HEADS)
PAIRS_OF |= dict.fromkeys(("dpcd_teacher", "dpcd"), (("resnet8_aux_dpcd", "wrn_16_1"),)) | {
    "dml": (("resnet8", "resnet8"),)
}
CLASSES = 5


def thin_vgg(**options):
    with mock.patch("models.vgg.WIDTHS", (8, 16, 32, 64, 64)):
        return VGG(**options)


def thin(name):
    """The spec of a network; with an eighth of the channels if it is a VGG, half of them if it is a wide ResNet."""
    spec = model_dict[name]
    if name.startswith("vgg"):
        return dataclasses.replace(spec, build=partial(thin_vgg, **spec.build.keywords))
    if name == "resnet8x4":
        return dataclasses.replace(spec, build=partial(spec.build, widths=(16, 32, 64, 128)))
    return spec


def config(name, **settings):
    return method_dict[name].Config(**SMALL.get(name, {}), **settings)


def combined(*names, **settings):
    return CombinedConfig(members=tuple((method_dict[n], config(n)) for n in names), **settings)


def registry_cases():
    """id -> (method, config, student spec, teacher factory or None, data)."""
    cases = {}
    for name in method_dict:
        method = method_dict[name]
        for student, teacher in PAIRS_OF.get(name, PAIRS):
            side = 32 if "vit" in student + teacher else 16  # patches of 4 px
            data = ToyData(image=(3, side, side), num_classes=CLASSES)
            factory = None if method.teacher_mode == "absent" else lambda t=teacher: network(thin(t), CLASSES)
            cases[f"{name}-{student}-{teacher}"] = (method, config(name), thin(student), factory, data)
    return cases


def toy_cases():
    image, paired = ToyData(), ToyData("paired")

    def small():
        return network(cnn(8))

    def vit():
        return network(model_dict["vit_micro_cifar"], CLASSES)

    def cakd(student="resnet8", **settings):
        photos = ToyData(image=(3, 32, 32), num_classes=CLASSES)
        return method_dict["cakd"], config("cakd", **settings), model_dict[student], vit, photos

    def aux(name):
        return model_dict[name]

    def heads():
        return network(aux("resnet8_aux"))

    default = method_dict["kd"].Config()
    flags = {"norm_kd": True, "ea_weight": True}
    weighted = CombinedConfig(
        members=tuple((method_dict[n], config(n, **flags)) for n in ("kd", "dkd", "rld")), **flags
    )
    return {
        "rotated-teacher": (RotatedTeacher, RotatedTeacher.Config(), cnn_aux(4), None, image),
        "rotated": (Rotated, Rotated.Config(beta=1.0), cnn_aux(4), lambda: network(cnn_aux(8)), image),
        "teacher-view": (TeacherView, TeacherView.Config(), cnn(4), small, image),
        "critic": (Critic, Critic.Config(), cnn(4), lambda: network(VIT), image),
        "two-stage": (Factor, Factor.Config(beta=1.0), cnn(4), small, image),
        "online": (Mutual, Mutual.Config(), cnn(4), None, image),
        "video-to-sensor": (method_dict["kd"], default, SENSOR, lambda: network(VIDEO), paired),
        "video": (method_dict["kd"], default, VIDEO, lambda: network(VIDEO), paired),
        "combined": (Combined, combined("at", "crd", "vid"), cnn(4), small, image),
        "combined-deploying": (Combined, combined("simkd", "sp", cls=0.0, div=0.0), cnn(4), small, image),
        "simkd-own-logits": (method_dict["simkd"], config("simkd", cls=1.0, div=1.0), cnn(4), small, image),
        "logits": (Combined, combined("dkd", "ctkd", "mgd", logit_stand=True), cnn(4), small, image),
        "logits-weighted": (Combined, weighted, cnn(4), small, image),
        "kd-hard": (method_dict["kd"], config("kd", hard=True, ea_weight=True), cnn(4), small, image),
        "crld-and-skd": (Combined, combined("crld", "skd"), cnn(4), small, image),
        "sdd-nkd": (method_dict["sdd"], config("sdd", base="nkd", cls=0.0, scales=(1, 2, 4)), cnn(4), small, image),
        "cat_kd-authors": (method_dict["cat_kd"], config("cat_kd", cls=0.0, div=0.0), cnn(4), small, image),
        "srd-only": (method_dict["srd"], config("srd", cls=0.0, div=0.0), cnn(4), small, image),
        "mlkd-video": (method_dict["mlkd"], config("mlkd", views=1), SENSOR, lambda: network(VIDEO), paired),
        "cakd-code": cakd(variant="code"),
        "cakd-code-gl": cakd(variant="code", parts="gl"),
        "cakd-gl+pca": cakd("vgg8", parts="gl+pca"),
        "hsakd-rotations": (method_dict["hsakd"], config("hsakd", rotations=2), aux("resnet8_aux"), heads, image),
        "hsakd-heads": (
            method_dict["hsakd"],
            config("hsakd", heads=(3, 3, 1), cls=0.0, div=0.0),
            aux("resnet8_aux"),
            heads,
            image,
        ),
        "hsakd_teacher-frozen": (
            method_dict["hsakd_teacher"],
            config("hsakd_teacher", freeze_backbone=True),
            aux("resnet8_aux"),
            None,
            image,
        ),
        "kd-of-aux": (method_dict["kd"], config("kd"), aux("resnet8_aux"), heads, image),
        "kd-only": (method_dict["kd"], config("kd", cls=0.0), cnn(4), small, image),
    }


ALL = registry_cases() | toy_cases()


def soft_targets(batch, num_classes):
    return torch.nn.functional.one_hot(batch.target, num_classes).float() * 0.9 + 0.1 / num_classes
