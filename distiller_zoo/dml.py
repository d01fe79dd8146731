"""Deep Mutual Learning (Zhang et al., CVPR 2018): CE(p1, y) + KL(p2 || p1), and the same of the peer."""

from __future__ import annotations

from dataclasses import dataclass

from distiller_zoo.base import Peers


class DML(Peers):
    """T = 1. Both peers take their step from the same predictions; the paper updates one after the other."""

    name = "dml"

    @dataclass(frozen=True)
    class Config(Peers.Config):
        kd_T: float = 1.0  # noqa: N815 (the published flag)
