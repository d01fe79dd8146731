"""Baseline without a network: extremely randomised trees (Geurts et al., 2006) on statistics of a sensor recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.packages import needed
from core.protocols import UserError
from dataset.recordings.actions import ActionData
from dataset.recordings.pairs import SENSOR, Sample
from dataset.recordings.sensors import read_sensor

PARTS = 4  # of the time axis, next to the whole
TREES = 500


def statistics_of(values: np.ndarray) -> np.ndarray:
    """[C, T] -> mean, standard deviation, minimum and maximum of every axis, over the whole and over four parts."""
    pieces = [values, *np.array_split(values, PARTS, axis=1)]
    return np.concatenate([f(p, axis=1) for p in pieces for f in (np.mean, np.std, np.min, np.max)])


def extra_trees(data: ActionData, seed: int) -> tuple[float, np.ndarray]:
    """(top-1 in percent on the tested recordings, predicted classes [N])."""
    ensemble = needed("sklearn.ensemble", "the baseline", "scikit-learn")
    if SENSOR not in data.shapes:
        raise UserError("the baseline reads a sensor: choose --modality accel, gyro or inertial")
    modality = data.modality_of[SENSOR]

    def table(samples: Sequence[Sample]) -> np.ndarray:
        return np.stack([statistics_of(read_sensor(s.files[modality].path, modality)) for s in samples])

    trees = ensemble.ExtraTreesClassifier(TREES, random_state=seed).fit(table(data.train), data.train_labels.numpy())
    predicted = trees.predict(table(data.test))
    return 100 * float((predicted == data.test_labels.numpy()).mean()), predicted
