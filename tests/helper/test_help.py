"""--help, --help_all and completion: quick, and the same with and without torch."""

import json
import os
import subprocess
import sys

import pytest

from helper.machine.program import ScriptParser
from helper.options import flags as flag_list
from helper.options import quick
from helper.options.parse import parse, script_parser
from helper.options.settings import COMMON, TrainStudentConfigs, TrainTeacherConfigs, common_flags
from tests.support.commands import ENV, ROOT

SCRIPTS = ("train_teacher.py", "train_student.py", "test_model.py", "eval_rep.py", "predict.py")


def answer(script, *argv, **env):
    command = [sys.executable, str(ROOT / script), *argv]
    return subprocess.run(command, capture_output=True, text=True, env={**ENV, **env}, check=True)


def test_flags_json_is_up_to_date():
    kept, now = json.loads(quick.FLAGS.read_text()), json.loads(json.dumps(flag_list.flags()))
    assert kept == now, "run: python -m helper.options.flags"


def test_the_flags_of_every_method_print():
    """A percent sign in a help text must not reach argparse as a format."""
    known = json.loads(quick.FLAGS.read_text())
    about = known["scripts"]["train_student.py"]
    texts = {m: quick.page(about | {"groups": [[m, flags]]}, everything=True) for m, flags in known["methods"].items()}
    assert "5 % of the classes" in " ".join(texts["deepkd"].split())


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["-h", "--help_all", "--help-all"])
def test_help_imports_no_torch(script, flag):
    """Nor much else: what takes time is imports. PYTHONPROFILEIMPORTTIME lists every one on standard error."""
    found = answer(script, flag, PYTHONPROFILEIMPORTTIME="1")
    assert "usage:" in found.stdout and "torch" not in found.stderr
    assert len(found.stderr.splitlines()) < 200, found.stderr


def test_short_and_long():
    short, everything = (answer("train_student.py", flag).stdout for flag in ("--help", "--help_all"))
    shown, flags = (
        {line.split()[0].strip(",") for line in text.splitlines() if line.startswith("  -")}
        for text in (short, everything)
    )
    assert 30 <= len(shown) <= 42 and shown < flags and {"--path_t", "--distill"} <= shown
    names = {f.names[0] for f in common_flags(TrainStudentConfigs)}
    assert names <= flags
    assert f"--help_all shows {len(flags) - len(shown)} more flags" in " ".join(short.split())
    assert "--schedule {step,cosine}" in short and "(default step)" in short


def test_every_common_flag_exists():
    known = {f.dest for kind in (TrainStudentConfigs, TrainTeacherConfigs) for f in common_flags(kind)}
    assert {name for names in COMMON.values() for name in names} <= known


@pytest.mark.parametrize("distill", ["kd", "crd", "fitnet+crd", "hint,simkd", "vanilla"])
@pytest.mark.parametrize("flag", ["--help", "--help_all"])
def test_both_ways_print_the_same(distill, flag, capsys):
    """The full parser, which plugins need, and flags.json."""
    with pytest.raises(SystemExit):
        parse(["--distill", distill, flag], teacher=False)
    assert answer("train_student.py", "--distill", distill, flag).stdout == capsys.readouterr().out


def test_an_unknown_method_is_named(commands):
    commands("train_student.py", "--distill", "crdd", "--help").refused("unknown method 'crdd'", "crd")


def test_a_path_is_no_flag():
    assert quick.normalised(["--path-t=a-b", "-h", "--", "--a-b"]) == ["--path_t=a-b", "-h", "--", "--a-b"]


@pytest.mark.parametrize(
    ("line", "offered", "others"),
    [
        ("train_student.py --path_", ["--path_t"], ["--distill"]),
        ("train_student.py --distill sim", ["simkd"], ["kd"]),
        ("train_student.py --distill crd --nce_", ["--nce_k", "--nce_t", "--nce_m"], ["--hard"]),
        ("train_teacher.py --model resnet8x", ["resnet8x4"], ["vgg8"]),
        ("train_student.py --schedule c", ["cosine"], ["step"]),
        ("test_model.py --crops t", ["three", "ten"], ["one"]),
    ],
)
def test_completion(line, offered, others, tmp_path):
    pytest.importorskip("argcomplete", reason="needs argcomplete, of requirements-extra.txt")
    out = tmp_path / "offered"
    request = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    request |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n", "COMP_WORDBREAKS": " "}
    script = line.split()[0]
    subprocess.run([sys.executable, str(ROOT / script)], env={**os.environ, **request}, check=True, capture_output=True)
    found = {word.strip() for word in out.read_text().split("\n")}
    assert set(offered) <= found and not found & set(others), found


def test_a_parser_of_a_script_needs_no_method():
    assert script_parser(TrainStudentConfigs).prog == "train_student.py"


def test_scripts_show_the_default_of_each_flag_once():
    parser = ScriptParser(description="What it does.\n\n    as it is written", prog="x")
    parser.add_argument("--size", type=int, default=0, help="size in %% of the image")
    parser.add_argument("--noise", nargs="+", default=[0.1, "50%"], help="several")
    parser.add_argument("--own", default=3, help="a number (default: one per core)")
    parser.add_argument("--switch", action="store_true", help="a switch")
    parser.add_argument("--name", help="a name")
    assert "\n    as it is written" in parser.format_help()
    text = " ".join(parser.format_help().split())
    assert "size in % of the image (default 0) --noise" in text and "several (default 0.1 50%) --own" in text
    assert "a number (default: one per core) --switch a switch --name NAME a name" in text
