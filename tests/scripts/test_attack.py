"""A slice of the attack, and that it notices what it is for."""

from pathlib import Path

import pytest

from scripts.dev import attack as under_test
from scripts.dev import wrong_inputs
from scripts.dev.attack import CACHED


@pytest.fixture(scope="module")
def attack(commands, tmp_path_factory):
    return under_test.Attack(tmp_path_factory.mktemp("attack"), [commands])


def place(attack, name: str) -> Path:
    (found,) = (path for path in under_test.files_of(attack.half(CACHED)) if path.name == name)
    return found


def test_a_slice(attack):
    attack.kill(CACHED, 0)
    for name in ("logits.bin", "resnet8_last.pth", "args.json"):
        attack.damage(CACHED, place(attack, name), "flip", 0)
    attack.damage_finished(CACHED, place(attack, "metrics.jsonl"), "flip", 0)
    assert not attack.examples, attack.report()
    assert attack.counts["damage", f"{CACHED}: resnet8_last.pth, flip"] == {"refused": 1}
    assert attack.counts["damage", f"{CACHED}: args.json, flip"] == {"refused": 1}
    assert attack.counts["damage", f"{CACHED}: logits.bin, flip"] == {"same": 1}
    assert attack.counts["damage", "table, metrics.jsonl, flip"] == {"refused": 1}
    assert attack.killed > 0 and f"{attack.killed} SIGKILLs in 1 runs" in attack.report()


def test_some_wrong_inputs(attack, tmp_path):
    known = wrong_inputs.Known(tmp_path, attack.teacher, attack.root / "t", attack.teacher.parent)
    cases = {case.case: case for case in wrong_inputs.settings(known)}
    names = ("--epochs 'x'", "--schedule 'misspelt'", "--path_t cut", "--path_t fifo", "--path_t device")
    for name in (*(f"train_student.py {name}" for name in names), "--nce_k '-1'"):
        attack.wrong(cases[name])
    assert not [e for e in attack.examples if e.startswith("inputs")], attack.report()


def test_every_number_of_every_script_is_tried(attack, tmp_path):
    known = wrong_inputs.Known(tmp_path, attack.teacher, attack.root / "t", attack.teacher.parent)
    cases = list(wrong_inputs.parsers(known))
    tried = {case.case for case in cases}
    assert {"test_model.py --batch_size '0'", "predict.py --top '-1'", "scripts/tune.py --trials 'x'"} <= tried
    assert len(cases) > 300 and any(case.case.startswith("scripts/plot.py --bins") for case in cases)


def test_a_difference_is_noticed(attack, monkeypatch):
    """A run that ends otherwise than the undisturbed one, and a wrong input that is accepted, are faults."""
    attack.reference(CACHED)
    monkeypatch.setitem(attack.whole, CACHED, {"another": "result"})
    attack.damage(CACHED, place(attack, "env.json"), "half", 1)
    assert attack.examples[-1].startswith(f"damage, {CACHED}: env.json, half: DIFFERENT")
    attack.wrong(wrong_inputs.Wrong("fine", "train_student.py", ("--list", "data"), "never said"))
    assert "inputs, fine: ACCEPTED" in attack.examples[-1] and "Faults:" in attack.report()
