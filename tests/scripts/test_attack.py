"""A slice of the attack, and that it notices what it is for."""

import time

import pytest

from scripts.dev import attack as under_test


@pytest.fixture(scope="module")
def attack(tmp_path_factory):
    attack = under_test.Attack(tmp_path_factory.mktemp("attack"), 0, time.monotonic() + 600)
    yield attack
    attack.commands.close()


def test_a_slice(attack):
    attack.kill("kd, teacher cache")
    attack.damage("logits.bin", "flip")
    attack.damage("resnet8_last.pth", "flip")
    for _, case in zip(range(2), under_test.wrong_inputs(attack), strict=False):
        case()
    assert not attack.examples, attack.report()
    assert attack.counts["damage", "resnet8_last.pth, flip"] == {"refused": 1}
    assert attack.counts["damage", "logits.bin, flip"] == {"same": 1}
    assert attack.killed > 0 and f"SIGKILLs: {attack.killed}" in attack.report()


def test_a_difference_is_noticed(attack, monkeypatch):
    """A cache whose checksums are not compared: zeros teach, and the run ends with other numbers."""
    kind = "kd, teacher cache"
    attack.reference(kind)
    monkeypatch.setitem(attack.whole, kind, {"another": "result"})
    attack.damage("env.json", "half")
    assert attack.examples[-1].startswith("damage, env.json, half: DIFFERENT")
    attack.wrong("fine", "train_student.py", ("--list",), "never said")
    assert "inputs, fine" in attack.examples[-1] and "Faults:" in attack.report()
