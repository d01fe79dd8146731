"""Two gloo ranks under torchrun agree after training, for every method and family."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cases import ALL, registry_cases

# one pair of networks of every method, and the toys of every family; the second pairs are walked in the slow sweep
QUICK = [*{case.split("-")[0]: case for case in reversed(registry_cases())}.values(), *(ALL.keys() - registry_cases())]
OTHERS = sorted(ALL.keys() - {*QUICK})
ROOT = Path(__file__).resolve().parents[2]


def torchrun(*args, processes=2, timeout=500):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("cases", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["quick", "others"])
def test_two_ranks_agree_for_every_case(cases):
    done = torchrun("tests/support/ddp_walk.py", *cases, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert f"{len(cases)} cases agree" in done.stdout


@pytest.mark.parametrize("kind", ["ranks disagree"])
def test_the_walk_notices_what_ddp_does_not_see(kind, commands, tmp_path):
    """The same walk without DDP must fail, else it proves nothing."""
    walk = (ROOT / "tests" / "support" / "ddp_walk.py").read_text().replace("step = build(wrap=ddp)", "step = build()")
    broken = tmp_path / "walk.py"
    broken.write_text(walk.replace("Path(__file__)", f"Path({str(ROOT / 'tests' / 'support' / 'ddp_walk.py')!r})"))
    done = commands(str(broken), "kd-resnet8-resnet8x4", ranks=2)
    assert done.code != 0 and kind in done.out, done
