"""scripts/studies/tenths.py: similarity in the published loop, on several tenths of the training images."""

import pytest
import torch

from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import DataOptions
from models import model_dict
from scripts.bench.usual_way import WithFeatures
from scripts.studies import tenths
from tests.support.reference_loop import own_loss


def test_the_loss():
    maps_s, maps_t = (torch.randn(6, c, 3, 3, dtype=torch.float64) for c in (4, 5))
    published = own_loss("similarity", [maps_s, None], [maps_t, None], None, None, None)
    assert torch.allclose(tenths.similarity(maps_s, maps_t), published, rtol=1e-12)


def test_the_tenths():
    labels = torch.randperm(50_000, generator=torch.Generator().manual_seed(0)) % 100
    found = list(tenths.tenths(labels, seeds=2).values())
    assert [len(positions.unique()) for positions in found] == [5000] * 4
    for positions in found[:3]:
        assert labels[positions].bincount().tolist() == [50] * 100
    assert labels[found[3]].bincount().unique().numel() > 1 and not torch.equal(found[0], found[1])


def test_trains_on_the_chosen_images_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(tenths, "EPOCHS", 2)
    data = dataset_dict["digits"](DataOptions(tmp_path))
    torch.manual_seed(0)
    spec = model_dict["resnet20"]
    teacher = WithFeatures(spec(num_classes=10).eval(), spec)
    chosen = (data.train_labels < 2).nonzero().flatten()
    zeros_and_ones = tenths.trained(data, chosen, teacher, seed=0)
    assert zeros_and_ones == tenths.trained(data, chosen, teacher, seed=0)
    assert 5 < zeros_and_ones < 35  # at most the two digits that it saw


def test_seeds_are_counted_from_one(tmp_path):
    with pytest.raises(UserError, match="--seeds 0 must be at least 1"):
        tenths.main(["--teacher", "t.pth", "--seeds", "0", "--out", str(tmp_path / "t.md")])
