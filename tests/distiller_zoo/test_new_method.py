"""One file and one line add a method: it is listed, has flags, passes the contract and has a command of its own."""

import re
import shutil
import subprocess
import sys

from tests.support.commands import ENV, ROOT

METHOD = '''"""Mean logits (Nobody et al., Nowhere 2026, eq. 1): distance of the logits' means over classes."""

from dataclasses import dataclass

from core.option import option
from distiller_zoo.base import Distiller


class MeanLogits(Distiller):
    name = "mean_logits"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 2.0
        power: float = option(2.0, "factor of the distance")

    def terms(self, s, t, batch, progress):
        distance = (s["logits"] - t["logits"]).mean(1).abs() * self.cfg.power
        return {"mean_logits": distance.mean()}
'''
FOLDERS = ("core", "crd", "dataset", "distiller_zoo", "helper", "models", "scripts", "tests")


def test_one_file_and_one_line(tmp_path):
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(file, tmp_path)
    (tmp_path / "distiller_zoo" / "mean_logits.py").write_text(METHOD)
    registry = tmp_path / "distiller_zoo" / "__init__.py"
    last = re.findall(r"^ +\"kd\": .*\n", text := registry.read_text(), re.M)[0]
    registry.write_text(
        text.replace(last, last + last.replace("kd:KD", "mean_logits:MeanLogits").replace('"kd"', '"mean_logits"'))
    )

    def run(*command):
        command = [sys.executable, *command]
        done = subprocess.run(
            command, cwd=tmp_path, env=ENV | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    code = (
        "from helper.options import listing; print(listing.page('methods')); from scripts.cifar100 import method; "
        "method.main(['mean_logits']); from helper.options.parse import parse; "
        "print(parse(['--distill', 'mean_logits', '--mean_logits_power', '3'], teacher=False).method_flags)"
    )
    out = run("-c", code)
    assert re.search("^mean_logits", out, re.M) and "--distill mean_logits" in out
    tests = ("tests/distiller_zoo/test_contract.py", "tests/helper/test_sync.py", "tests/distiller_zoo/test_methods.py")
    found = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "mean_logits")
    assert re.search(r"\d+ passed", found)
