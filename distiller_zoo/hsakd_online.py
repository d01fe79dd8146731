"""HSAKD between two peers (Yang et al., IJCAI 2021, its online mode): both train, each teaches the other."""

from __future__ import annotations

from core.protocols import Batch, Features, ModelSpec, Needs, Progress, Terms
from distiller_zoo._heads import Rotated, auxiliary_heads
from distiller_zoo._math import detached
from distiller_zoo.base import Peers


class HSAKDOnline(Peers, Rotated):
    """cls, div, peer_cls, peer_div as in Peers, over all views; hsakd_online: of both peers, cross-entropy of
    (class, rotation) and the KL towards the other's heads, summed over heads. T = 3, one optimiser."""

    name = "hsakd_online"

    @classmethod
    def needs(cls, cfg: Rotated.Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        heads = auxiliary_heads(student, cls.name)
        return Needs(heads, heads)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        same = {head: head for head in self.heads}
        labels = self.joint_entropy(s, self.heads, batch) + self.joint_entropy(t, self.heads, batch)
        mutual = self.head_kl(s, detached(t), same) + self.head_kl(t, detached(s), same)
        return {"hsakd_online": labels + mutual}
