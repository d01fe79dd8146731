"""Two gloo ranks agree after training, for every method and family."""

from pathlib import Path

import pytest

from tests.support.cases import ALL, TERMS_ALONE, registry_cases

# toys that are a method of the registry with other settings, or several
SETTINGS = {"simkd-own-logits", "logits", "logits-weighted", "kd-hard", "crld-and-skd", "sdd-nkd", "cat_kd-authors"}
SETTINGS |= {"srd-only", "mlkd-video", "cakd-code-gl", "cakd-gl+pca", "hsakd-heads", "hsakd-rotations"}
SETTINGS |= {"kd-of-aux", "kd-only"}
WITHOUT_PARAMETERS = {"sp", "pkt", "rkd", "nst", "irg", "hkd", "kdsvd", "cat_kd"}  # at stands for them
# one pair of networks of every other method, and the toys of every family; the rest is walked in the slow sweep
FIRST = {case.split("-")[0]: case for case in reversed(registry_cases())}
QUICK = [case for name, case in FIRST.items() if name not in TERMS_ALONE | WITHOUT_PARAMETERS] + sorted(
    ALL.keys() - registry_cases() - SETTINGS
)
OTHERS = sorted(ALL.keys() - {*QUICK})
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("cases", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["quick", "others"])
def test_two_ranks_agree_for_every_case(cases, commands):
    done = commands("tests/support/ddp_walk.py", *cases, ranks=2)
    assert done.code == 0, done.out + done.err[-3000:]
    assert f"{len(cases)} cases agree" in done.out


def test_the_walk_notices_what_ddp_does_not_see(commands, tmp_path):
    """The same walk without DDP must fail, else it proves nothing."""
    walk = (ROOT / "tests" / "support" / "ddp_walk.py").read_text().replace("step = build(wrap=ddp)", "step = build()")
    broken = tmp_path / "walk.py"
    broken.write_text(walk.replace("Path(__file__)", f"Path({str(ROOT / 'tests' / 'support' / 'ddp_walk.py')!r})"))
    done = commands(str(broken), "kd-resnet8-resnet8x4", ranks=2)
    assert done.code != 0 and "ranks disagree" in done.out, done
