"""Published recipe per data set: flag name -> default. An explicit flag overrides it.

SGD with momentum 0.9 and step decay by 0.1; `lr_decay_epochs` are the last epochs, counted from 1, before each decay.
"""

from __future__ import annotations

from collections.abc import Mapping

Recipe = Mapping[str, int | float | str]

# CIFAR-100 in RepDistiller, SemCKD and SimKD
SMALL: Recipe = dict(batch_size=64, epochs=240, learning_rate=0.05, lr_decay_epochs="150,180,210", weight_decay=5e-4)
# ImageNet in SimKD
LARGE: Recipe = dict(batch_size=256, epochs=120, learning_rate=0.1, lr_decay_epochs="30,60,90", weight_decay=1e-4)
# TSM-MobileNetV2 on Kinetics-400 in MMAction2
VIDEO: Recipe = dict(batch_size=128, epochs=100, learning_rate=0.02, lr_decay_epochs="40,80", weight_decay=2e-5)
# VSKD's batch, epochs, decay and first drop; its rates are 1e-3 for the teacher, and Adam's 2e-4 for the student
PAIRED: Recipe = dict(batch_size=16, epochs=100, learning_rate=0.01, lr_decay_epochs="50,75", weight_decay=5e-4)

RECIPES: Mapping[str, Recipe] = {
    "imagenet": LARGE,
    "utd_mhad": PAIRED,
    "berkeley_mhad": PAIRED,
    "mmact": PAIRED,
    "kinetics400": VIDEO,
    "video": VIDEO,
}  # of every other data set: SMALL
