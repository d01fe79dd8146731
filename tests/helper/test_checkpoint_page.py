"""The page about a checkpoint: its numbers are those of the logits, and it needs no other file."""

import re

import pytest
import torch

import test_model
from core.protocols import Batch, UserError
from helper.deploy.checkpoint_page import WORST, Seen, class_rows, page, pair_rows
from helper.evaluation.metrics import confusion_matrix
from models import model_dict
from tests.support.packages import need

need("matplotlib")
CLASSES = ("cat", "dog", "<cow>")


def seen_of(logits, labels, size=4):
    seen = Seen("image")
    x = torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / len(labels)
    index = 2 * torch.arange(len(labels))  # every second sample could not be read
    for at in range(0, len(labels), size):
        part = slice(at, at + size)
        seen(Batch({"image": x[part]}, labels[part], index[part]), {"student": logits[part]})
    return seen


def test_classes_pairs_and_worst_mistakes():
    # true:               cat  cat  cat  dog  dog  cow
    predicted = torch.tensor([0, 1, 1, 1, 0, 2])
    labels, sure = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([9.0, 1, 5, 9, 3, 9])
    seen = seen_of(torch.eye(3)[predicted] * sure[:, None], labels)
    logits, kept, positions = seen.samples()
    counts = confusion_matrix(kept, logits.argmax(1), 3)
    assert counts.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    rows = class_rows(counts, CLASSES)
    assert [(name, n) for name, n, *_ in rows] == [("cat", 3), ("dog", 2), ("<cow>", 1)]
    assert rows[0][2:] == (pytest.approx(100 / 3), 50.0) and rows[1][2:] == (50.0, pytest.approx(100 / 3))
    assert pair_rows(counts, CLASSES) == [("cat", "dog", 2), ("dog", "cat", 1)]
    assert [place for place, _ in seen.worst] == [2, 4, 1]
    assert all(torch.equal(x, torch.full((3, 8, 8), place / 6)) for place, x in seen.worst)
    assert positions.tolist() == [0, 2, 4, 6, 8, 10]
    text = page(seen, CLASSES, "resnet8 on <animals>", "a.pth")
    assert "&lt;animals&gt;" in text and "<cow>" not in text and "50.00" in text
    assert not re.findall(r"""src=["'](?!data:)|href=|https?://""", text) and text.count("data:image/png") == 3


def test_only_the_worst_are_kept_and_none_is_said():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 3, generator=generator), torch.randint(3, (500,), generator=generator)
    seen = seen_of(logits, labels, 50)
    p = logits.softmax(1)
    gaps = p.max(1).values - p[torch.arange(500), labels]
    assert [place for place, _ in seen.worst] == gaps.topk(WORST).indices.tolist()
    assert "No mistake." in page(seen_of(torch.eye(3) * 9, torch.arange(3)), CLASSES, "a", "b")


def test_written_by_test_model(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "resnet8_best.pth"
    torch.save({"model": model_dict["resnet8"](num_classes=10).state_dict(), "meta": {"arch": "resnet8"}}, path)
    argv = [
        "--path",
        str(path),
        "--dataset",
        "digits",
        "--image_size",
        "16",
        "--report",
        str(tmp_path / "a" / "r.html"),
    ]
    test_model.main(argv)
    assert "resnet8 on digits" in (tmp_path / "a" / "r.html").read_text()
    with pytest.raises(UserError, match="--report needs a test set"):
        test_model.main([*argv, "--file", "a.mat"])
    for place, words in ((tmp_path, "is a folder: name a file"), (path / "r.html", "cannot make the folder")):
        with pytest.raises(UserError, match=words):  # before the checkpoint is read
            test_model.main(["--path", "nowhere.pth", "--dataset", "digits", "--report", str(place)])
