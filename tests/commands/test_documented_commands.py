"""Every command in README, docs and scripts is one the programs accept; a handful of them is run."""

import argparse
import contextlib
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from distiller_zoo import method_dict
from helper.options.parse import parse_students
from models import model_dict

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.sh"))
TRAIN = ("train_teacher.py", "train_student.py")
VARIABLE = re.compile(r"\$\(|\$\{?[\w@\[\]+:]+")


def lines_of(path: Path) -> list[str]:
    """Shell lines, with continued ones joined: of a page those in its bash blocks, in the last column of its tables and
    in its sentences, of a script all but comments."""
    text = path.read_text()
    if path.suffix == ".md":
        blocks = re.findall(r"^```(?:bash|sh|shell)\n(.*?)^```", text, re.S | re.M)
        replacements = re.findall(r"^\|.*\|([^|]+)\|$", text, re.M)  # the first column may hold other people's commands
        prose = re.sub(r"^\|.*$", "", re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.S | re.M), flags=re.M)
        spans = (span for part in (*replacements, prose) for span in re.findall(r"`(python [^`]+)`", part))
        text = "\n".join([*blocks, *(span.replace("\n", " ") for span in spans)])
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def replacements_of(page: Path) -> list[str]:
    """Commands that a page's tables name in their last column, in place of another toolbox's, to be typed as is."""
    cells = [line.strip(" |").split("|")[-1] for line in page.read_text().splitlines() if line.startswith("| ")]
    calls = [re.search(r"`[^`]*?((?:\w+/)*\w+\.py [^`]*)`", cell) for cell in cells]
    return [call[1] for call in calls if call and not re.search(r"\.\.\.|\[", call[1])]


def defaults_of(path: Path) -> dict[str, str]:
    """Variables of a script with a value that can be read off it: a text, a default, the first turn of a loop."""
    text = path.read_text()
    found = dict(re.findall(r'^(?:export )?(\w+)=(?:"([^"]*)")$', text, re.M))
    found |= dict(re.findall(r"\b(\w+)=\$\{\w+:-([^}]*)\}", text))
    found |= dict(re.findall(r"^\s*for (\w+) in ([\w+.]+)", text, re.M))
    return {name: " ".join(value.split()) for name, value in found.items() if "$(" not in value}


def commands_of(path: Path) -> list[list[str]]:
    """[program, arguments...] for every call of a Python program of the repository. "$@" and arrays are left out, other
    variables stand for a word."""
    out = [shlex.split(call) for call in replacements_of(path)] if path.suffix == ".md" else []
    for line in lines_of(path):
        line = re.sub(r"^bash (scripts/(?:run_table|fetch_teachers))\.sh", r"python \1.py", line)  # they pass all on
        line = re.sub(r"\btorchrun\b.*?(?=\s\w+\.py)", "python", line)
        line = re.sub(
            r"-m ((?:dataset|helper|scripts)(?:\.\w+)+)", lambda module: module[1].replace(".", "/") + ".py", line
        )
        found = re.search(r"(?:^|\s|\()(?:python3?|\"\$PYTHON\")\s+((?:\w+/)*\w+\.py.*)", line)
        if not found:
            continue
        call = re.split(r"\s(?:\||&&|>|>>|2>&1)\s?|;", found[1])[0]
        call = re.sub(
            r"\"?\$\{\w+\[@\]\+\"\$\{\w+\[@\]\}\"\}\"?|\"?\$\{\w+\[@\]\}\"?|\"\$@\"|\"\$\{@:\d\}\"", " ", call
        )
        call = call.replace('"$teacher"', "T.pth").replace('"$trial"', "0")
        known = defaults_of(path) if path.suffix == ".sh" else {}
        for _ in range(2):  # a text may hold variables of its own
            for name, value in known.items():
                call = re.sub(rf"\$(?:{name}\b|\{{{name}\}})", lambda _, value=value: value, call)
        call = re.sub(r"^(\S+\.py)(?:\s+\$\w+)+", r"\1", call)  # lists of flags that a function chooses
        out.append([token for token in shlex.split(call, comments=True) if token != "..."])
    return out


ALL = [
    pytest.param(call, id=f"{path.relative_to(ROOT)}:{i}")
    for path in (*PAGES, *SCRIPTS)
    for i, call in enumerate(commands_of(path))
]


class Parsed(Exception):  # noqa: N818
    """The program has understood its arguments."""


@pytest.mark.parametrize("call", ALL)
def test_is_understood(call, monkeypatch, tmp_path):
    program, *argv = call
    assert (ROOT / program).exists(), f"{program} does not exist"
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M):
        (tmp_path / "cosine.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    for registry in (method_dict, model_dict):  # what a plugin adds is forgotten
        monkeypatch.setattr(registry, "table", dict(registry.table))
    if any("$" in token for token in argv):
        values = {"--distill": "kd", "--epochs": "1", "--lr_decay_epochs": "1", "--few_ratio": "0.5", "--seed": "0"}
        values |= dict.fromkeys(("--model_s", "--model_t", "--model"), "resnet8")
        argv = [
            values.get(before, "w") if VARIABLE.search(t) else t for before, t in zip([None, *argv], argv, strict=False)
        ]
    if program in TRAIN:
        asks = {"--list", "--help"} & set(argv)
        with pytest.raises(SystemExit, match="^0$") if asks else contextlib.nullcontext():
            parse_students(argv, teacher=program == TRAIN[0])
        return
    real = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
    with pytest.raises(Parsed):
        module.main(argv)


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_exist_and_are_shell(path):
    for script in re.findall(r"\bscripts/[\w/]+\.(?:sh|py)\b", path.read_text()):
        assert (ROOT / script).exists(), f"{path.name} names {script}, which does not exist"
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        file = (page.parent / target) if target else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}#{anchor}"


def test_readme_leads_to_every_result():
    assert "(results/README.md)" in (ROOT / "README.md").read_text()
    text = (ROOT / "results" / "README.md").read_text()
    assert not [p.name for p in (ROOT / "results").glob("*.md") if f"({p.name})" not in text and p.name != "README.md"]


def test_there_are_commands_to_check():
    programs = {param.values[0][0] for param in ALL}
    expected = {"make_table", "plot", "tune", "report", "export_student", "run_table", "teachers/fetch_teachers"}
    assert {*TRAIN, "test_model.py", *(f"scripts/{name}.py" for name in expected)} <= programs
    assert len(ALL) > 60


DRY = ("--dry_run", "--dataset", "digits", "--model_s", "resnet8", "--image_size", "16", "--batch_size", "8")


@pytest.mark.parametrize("words", ["kd,at,simkd", "hint_layer 2", "crd=0.8"])
def test_some_are_run(commands, teacher, words, tmp_path):
    """Dry: parse, build, one batch, nothing written."""
    found = [c for page in PAGES for c in commands_of(page) if words in " ".join(c) and c[0] == "train_student.py"]
    call = found[0]
    argv = [str(teacher) if before == "--path_t" else t for before, t in zip([None, *call[1:]], call[1:], strict=False)]
    done = commands(call[0], *argv, *DRY, "--save_root", tmp_path / "save", cwd=tmp_path).finished()
    assert "dry run of S:resnet8_T:resnet8_digits" in done.out and "loss " in done.out
    assert not (tmp_path / "save").exists()


def test_a_dry_run_of_a_teacher_and_of_a_cache_writes_nothing(commands, teacher, tmp_path):
    root = ("--save_root", tmp_path / "save")
    done = commands.teacher(*DRY[:1], "--image_size", 16, *root, cwd=tmp_path).finished()
    assert "dry run of resnet8_vanilla_digits_trial_0" in done.out
    cached = ("--teacher_cache", tmp_path / "cache", "--distill", "kd", "--trials", 2)
    commands.student("--path_t", teacher, *cached, *DRY[:1], *root, cwd=tmp_path).finished()
    assert not list(tmp_path.iterdir())
