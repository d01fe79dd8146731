"""`--list` and README's tables, which come from the registries."""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import subprocess

import pytest

from distiller_zoo import method_dict
from helper.options import listing
from models import model_dict
from tests.support.commands import DIGITS, ENV, ROOT
from tests.support.run_folders import rows_of

MINE = dataclasses.replace(model_dict["resnet8"], name="mine8")
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def page():
    return listing.page()


def test_every_entry_is_listed_and_fits_a_terminal(page):
    assert max(map(len, page.splitlines())) <= 120
    starts = {re.split(r"[,: ]", line)[0] for line in page.splitlines()}
    assert {*method_dict, *model_dict} <= starts
    assert all(alias in page for alias in method_dict.aliases)


def test_every_paper_is_named():
    """The first line of a method's file is the only place where it stands."""
    for name in set(method_dict) - {"vanilla"}:
        paper = listing.paper_of(method_dict[name])
        assert paper["title"] and paper["authors"] and re.fullmatch(r"(.+ )?(19|20)\d\d", paper["venue"]), (name, paper)


def test_numbers_are_counted():
    simkd, kd, fitnet = (listing.method(method_dict[name]) for name in ("simkd", "kd", "fitnet"))
    # f = 2: 256 x 128, 9 x 128 x 128, 128 x 256, and three batch norms of 2 x width; published as 0.21 M
    assert simkd.deployed == simkd.trained == 256 * 128 + 9 * 128 * 128 + 128 * 256 + 2 * (128 + 128 + 256)
    assert (kd.deployed, kd.trained, kd.taps) == (0, 0, "logits")
    assert (fitnet.deployed, fitnet.trained) == (0, 64 * 64 + 64 + 2 * 64)
    assert fitnet.by_authors == "-d 0 --hint_layer 2"
    resnet = listing.model(model_dict["resnet8x4"])
    assert resnet.parameters == 1_233_540 and resnet.taps == "stem, stage1-3, stage1-3_preact, pooled"
    assert listing.model(model_dict["ResNet18"]).parameters == 11_689_512


def test_a_method_of_transformers_is_counted_for_one():
    """CAKD with resnet8x4's stage of 8 x 8 places and a teacher of width 192: linear groups, convolutions, critic."""
    cakd = listing.method(method_dict["cakd"])
    groups = 4 * (256 * 192 + 192)
    assert cakd.trained == groups + 9 * 256 * 3 * 192 + (192 * 96 + 96) + (96 * 96 + 96) + (96 + 1)
    assert cakd.deployed == 0 and cakd.taps == "student stage1-3; teacher qkv, patches"
    assert cakd.found == ("taps and parameters are for vit_tiny_cifar -> resnet8x4",)


@pytest.mark.parametrize(
    ("taps", "words"),
    [
        (("stage1", "stage2", "pooled"), "stage1-2, pooled"),
        (("stage1", "stage3"), "stage1, stage3"),
        (("stem", "stage2", "stage2_preact"), "stem, stage2, stage2_preact"),
        ((), ""),
    ],
)
def test_taps_in_few_words(taps, words):
    assert listing.grouped(taps) == words


def test_readme_is_up_to_date():
    for path, text in listing.written(recount=False).items():
        assert path.read_text() == text, f"{path}: run python -m helper.options.listing --write"


def test_what_the_page_does_not_count_was_counted():
    """One network of each module; the slow test below counts them all, which takes most of a minute."""
    kept = json.loads(listing.COUNTED.read_text())
    assert (kept["models"].keys(), kept["methods"].keys()) == (model_dict.table.keys(), method_dict.table.keys())
    firsts = {place.split(":")[0]: name for name, place in reversed(model_dict.table.items())}
    counted = {name: list(listing.count_model(model_dict[name])) for name in firsts.values()}
    assert counted == {name: kept["models"][name] for name in counted}, "run: python -m helper.options.listing --write"


@pytest.mark.slow
def test_everything_that_the_page_does_not_count_was_counted():
    kept = json.loads(listing.COUNTED.read_text())
    assert kept == json.loads(json.dumps(listing.counts())), "run: python -m helper.options.listing --write"
    assert all(path.read_text() == text for path, text in listing.written().items())


def test_a_model_that_nobody_counted_is_counted(monkeypatch):
    """As a plugin's is."""
    monkeypatch.setattr(model_dict, "table", {"resnet8": model_dict.table["resnet8"], "mine8": f"{__name__}:MINE"})
    _, found = listing.models.__wrapped__()
    assert found.parameters == listing.model(model_dict["resnet8"]).parameters


@pytest.mark.parametrize("script", ["train_student.py", "train_teacher.py"])
def test_the_flag(commands, script):
    data = commands(script, "--list", "data").finished().out
    assert "digits" in data and "resnet8x4" not in data
    wrong = commands(script, "--list", "papers")
    assert wrong.code == 2 and "argument --list: invalid choice: 'papers'" in wrong.err


def test_parts_of_the_page(page):
    models = listing.page("models")
    assert "resnet8x4" in models and "METHODS" not in models and models in page and listing.page("methods") in page


def test_a_reader_that_stops_early(commands):
    """A page larger than a pipe's buffer, read by nobody."""
    reader, writer = os.pipe()
    code = "from helper.options import listing; listing.page = lambda kind: 'line\\n' * 10**5; listing.show('all')"
    child = subprocess.Popen([commands.python, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, env=ENV)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    assert child.communicate()[1] == "" and child.returncode == 0


def section(heading):
    return README.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_adding_your_own_works_as_written(commands, teacher, tmp_path):
    text = section("Your own method") + (ROOT / "docs" / "methods.md").read_text()
    code, *_ = blocks(text, "python")
    assert sum(bool(line.strip()) for line in code.splitlines()) == 15
    (tmp_path / "cosine.py").write_text(code)
    script, *_ = blocks(text, "bash")
    for line in script.splitlines():
        python, name, *argv = shlex.split(line.replace("T.pth", str(teacher)))
        assert python == "python"
        short = (*DIGITS, "--model_s", "resnet8", "--epochs", 2, "--max_steps", 8, "--tb_backend", "none")
        done = commands(name, *argv, *short, "--save_root", tmp_path / "save", cwd=tmp_path).finished()
        assert "cosine" in done.out
    alone, joined = sorted((tmp_path / "save/students/models").iterdir(), key=lambda p: len(p.name.split("+")))
    assert "_cosine_" in alone.name and "cosine+kd" in joined.name
    for folder in (alone, joined):
        rows = rows_of(folder)
        assert rows[1]["train_cosine"] < rows[0]["train_cosine"]
    light = ("--plugin", "cosine.py", "--distill", "cosine", "--path_t", teacher, "--dry_run")
    assert "has weight 0" in commands.student(*light, cwd=tmp_path).finished().out
    assert "has weight 0" not in commands.student(*light, "-b", 5, cwd=tmp_path).finished().out
    beta, bias = re.findall(r"`((?:beta|bias): [^`]+)`", text)
    settings = ("@dataclasses.dataclass(frozen=True)", "class Config(Distiller.Config):", f"    {beta}", f"    {bias}")
    imports = "import dataclasses\nfrom core.option import option\n"
    named = '    name = "cosine"\n'
    assert named in code
    (tmp_path / "cosine.py").write_text(imports + code.replace(named, named + "".join(f"    {s}\n" for s in settings)))
    help = (
        commands("train_student.py", "--plugin", tmp_path / "cosine.py", "--distill", "cosine", "--help").finished().out
    )
    assert "give the projection a bias" in help and "--cosine_bias" in help


METHOD = "from distiller_zoo.base import Distiller\nclass Mine(Distiller):\n    name = '{}'\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("mine.py", "is not a Python file")),
        ("x = 1\n", ("defines neither a method",)),
        (METHOD.format("kd"), ("the method name 'kd' is already taken", "mine.py")),
        (METHOD.format("hint"), ("the method name 'hint' is already taken",)),
    ],
)
def test_plugins_that_cannot_be(commands, tmp_path, content, words):
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    commands("train_student.py", "--plugin", tmp_path / "mine.py", "--distill", "kd").refused(*words)


def test_a_model_from_a_plugin(commands, tmp_path):
    lines = ("import dataclasses", "from models import model_dict")
    spec = "small = dataclasses.replace(model_dict['resnet8'], name='mine8')"
    (tmp_path / "mine.py").write_text("\n".join([*lines, spec]))
    argv = ("--dataset", "digits", "--epochs", 1, "--max_steps", 1, "--tb_backend", "none", "--save_root", tmp_path)
    commands("train_teacher.py", "--plugin", tmp_path / "mine.py", "--model", "mine8", *argv).finished()
    (best,) = tmp_path.rglob("mine8_best.pth")
    digest = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    assert json.loads((best.parent / "env.json").read_text())["plugins"] == {"mine.py": digest}
    commands("test_model.py", "--plugin", tmp_path / "mine.py", "--path", best, "--dataset", "digits").finished()
