"""scripts/studies/usual_kd.py: KD in the published loop, next to a run."""

import json

import pytest
import torch

from core.protocols import UserError
from scripts.studies import usual_kd


def test_the_loss():
    g = torch.Generator().manual_seed(0)
    z_s, z_t = (torch.randn(6, 5, generator=g, dtype=torch.float64) for _ in range(2))
    target = torch.randint(5, (6,), generator=g)
    cfg = {"kd_T": 4.0, "cls": 0.1, "div": 0.9}
    p, q = ((z / 4).exp() / (z / 4).exp().sum(1, keepdim=True) for z in (z_t, z_s))
    cross_entropy = -(z_s.exp() / z_s.exp().sum(1, keepdim=True))[range(6), target].log().mean()
    want = 0.1 * cross_entropy + 0.9 * 16 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(usual_kd.kd_loss(cfg, z_s, z_t, target), want, rtol=1e-12)


def test_resumes_and_compares(commands, teacher, tmp_path):
    flags = ("--distill", "kd", "--epochs", 2, "--lr_decay_epochs", 1, "--save_root", tmp_path)
    commands.student("--path_t", teacher, *flags).finished()
    (run,) = (tmp_path / "students" / "models").iterdir()
    cfg = json.loads((run / "args.json").read_text())["settings"]
    whole = usual_kd.usual_run(cfg, str(teacher), tmp_path, tmp_path / "whole.pth")
    usual_kd.usual_run(cfg | {"epochs": 1}, str(teacher), tmp_path, tmp_path / "state.pth")
    argv = ["--run", run, "--data_folder", tmp_path, "--state", tmp_path / "state.pth", "--out", tmp_path / "t.md"]
    usual_kd.main([str(a) for a in argv])
    assert torch.load(tmp_path / "state.pth", weights_only=True)["rows"] == whole
    table = [
        line.split("|")[1:-1] for line in (tmp_path / "t.md").read_text().splitlines() if line[:3] in ("| 1", "| 2")
    ]
    ours = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [float(row[2]) for row in table] == pytest.approx([row["train_loss"] for row in ours], abs=6e-4)
    assert [float(row[7]) for row in table] == pytest.approx([row["test_acc"] for row in whole], abs=6e-3)
    with pytest.raises(UserError, match="not a run of --distill kd"):
        usual_kd.main([str(a) for a in ["--run", teacher.parent, *argv[2:]]])
    (tmp_path / "short.pth").write_bytes(b"PK")
    for name, state in (("whole.pth", cfg | {"epochs": 1}), ("short.pth", cfg)):
        with pytest.raises(UserError, match="name another|damaged|not a checkpoint"):
            usual_kd.usual_run(state, str(teacher.parent), tmp_path, tmp_path / name)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="a line is no row"):
        usual_kd.main([str(a) for a in argv])
    (run / "parameters.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        usual_kd.main([str(a) for a in argv])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "is not a file"),
        ({"distill": None}, "not a run of --distill kd"),
        ({"schedule": "cosine"}, "--schedule cosine, the literal loop step"),
    ],
)
def test_other_runs_are_refused(tmp_path, settings, words):
    if settings is not None:
        cfg = {"distill": "kd", "path_t": ["t.pth"], **settings}
        (tmp_path / "args.json").write_text(json.dumps({"settings": cfg}))
    with pytest.raises(UserError, match=words):
        usual_kd.main(["--run", str(tmp_path), "--state", str(tmp_path / "s"), "--out", str(tmp_path / "t.md")])
