"""A training command of every page and of every folder of scripts is run on fixtures with --dry_run.

It parses, builds and trains one batch; the others are parsed, in test_documented_commands.py. What is replaced: the
data folder, and large data sets, by the fixture of the family (noise in the layout of the real data; digits for
images); networks by the smallest of their kind, teachers by such a network with random weights; images get 16 px (clips
32 px and 2 frames), batches 8 samples or fewer; of several trials there is one; nothing starts from published weights
or a frozen backbone; recordings are split by people. Whatever else a command says, it says here.

With `-m slow` every training command of every page and script is, each different one once, those of CIFAR-100 with the
networks they name. The studies that are left out have run to their end: their tables lie in results/.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from distiller_zoo import method_dict
from helper.options.parse import normalised, parse_students
from helper.tables.published import read_table, tables
from models import model_dict, model_for
from scripts.cifar100.method import commands as method_commands
from tests.commands.test_documented_commands import PAGES as DOCUMENTED
from tests.commands.test_documented_commands import commands_of
from tests.scripts.test_recipe_scripts import SCRIPTS as RECIPES
from tests.support import image_sets
from tests.support.commands import ROOT
from tests.support.interpreter import Interpreter
from tests.support.recordings import utd, write_video

README = (ROOT / "README.md").read_text()
DIGITS = ("--dataset", "digits", "--image_size", "16", "--batch_size", "8")
ACTIONS = ("--image_size", "32", "--window", "32", "--num_segments", "2", "--batch_size", "4")
ACTIONS += ("--data_split", "cross_subject")
CLIPS = ("--dataset", "video", "--image_size", "32", "--short_side", "32", "--num_segments", "2", "--batch_size", "3")
VIT = ("T.pth", "vit_tiny_cifar", "DATA", "SAVE")
SMALL = {  # kind of network -> (its smallest, classes and shapes of the fixture)
    "plain": ("resnet8", 10, {"image": (3, 16, 16)}),
    "aux": ("resnet8_aux", 10, {"image": (3, 16, 16)}),
    "aux_dpcd": ("resnet8_aux_dpcd", 10, {"image": (3, 16, 16)}),
    "vit": ("vit_micro_cifar", 10, {"image": (3, 16, 16)}),
    "trn": ("trn:resnet8", 27, {"video": (2, 3, 32, 32)}),
    "sensor": ("sensor_cnn", 27, {"sensor": (3, 32)}),
    "tsm": ("tsm:resnet8", 2, {"video": (2, 3, 32, 32)}),
    "tsn": ("tsn:resnet8", 2, {"video": (2, 3, 32, 32)}),
}
METHODS = {  # of cifar100/method.py -> kind of teacher, kind of student
    **dict.fromkeys(("kd", "crd", "ab", "ofa_kd"), ("plain", "plain")),  # logits, a memory bank, a first stage, exits
    "dml": (None, "plain"),
    "hsakd_teacher": (None, "aux"),
    "dpcd": ("aux_dpcd", "aux_dpcd"),
}
SCRIPTS = {  # script -> (arguments, --distill of the command that is run, kind of teacher, kind of student)
    "cifar100/scaled_study.sh": (("T.pth", "DATA", "SAVE", "1"), "", "plain", "plain"),
    "cifar100/patient_teachers.sh": (("vanillakd", "T.pth", "DATA", "SAVE"), "kd", "plain", "plain"),
    "quickstart.sh": ((), "simkd", "plain", "plain"),
    "teachers/train_teachers.sh": ((), "vanilla", None, "plain"),
    "hsakd/teachers.sh": ((".",), "hsakd_teacher", None, "aux"),
    "hsakd/same_style.sh": ((".",), "hsakd", "aux", "aux"),
    "hsakd/few_shot.sh": ((".",), "kd", "plain", "plain"),
    "hsakd/online_cifar.sh": ((".",), "hsakd_online", None, "aux"),
    "hsakd/dpcd.sh": ((".",), "dpcd", "aux_dpcd", "aux_dpcd"),
    "cakd/cifar100.sh": (VIT, "cakd", "vit", "plain"),
    "cakd/teacher.sh": (("T.pth", "DATA", "SAVE"), "kd", "plain", "vit"),
    "cakd/imagenet_logits.sh": (("DATA", "SAVE", "T.pth"), "logits", "vit", "plain"),
    "vskd/teacher.sh": (("DATA",), "vanilla", None, "trn"),
    "vskd/student.sh": (("DATA", "T.pth"), "dask", "trn", "sensor"),
    "video/tsm_teacher.sh": ((), "vanilla", None, "tsm"),
    "video/tsm_distil.sh": (("T.pth",), "dist", "tsm", "tsm"),
    "video/tsn_distil.sh": (("T.pth",), "dist", "tsn", "tsn"),
}
STUDIES = {"cakd/short_study.sh", "hsakd/short_study.sh", "video/short_study.sh", "vskd/short_study.sh"}
STUDIES |= {"studies/imagenette_study.sh", "dev/two_hosts.sh", "gpu_table.sh", "cifar100/full_cells.sh"}
STUDIES |= {"studies/int8_study.sh", "studies/unlabelled_study.sh", "studies/headless_study.sh"}
PAGES = {  # page -> words of the command, kind of teacher, kind of student
    "README.md": ("train_teacher.py", None, "plain"),
    "docs/classic.md": ("--distill simkd", "plain", "plain"),
    "docs/hsakd.md": ("--distill hsakd ", "aux", "aux"),
    "docs/vskd.md": ("--modality_t video", "trn", "sensor"),
}


DROPPED = {"--pretrained", "--pretrained_backbone", "--freeze_backbone", "--freezed"}
DROPPED |= {"--gpu_id", "--multiprocessing_distributed"}


def kind_of_data(kind):
    return ACTIONS if kind in ("trn", "sensor") else CLIPS if kind in ("tsm", "tsn") else DIGITS


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    made = "save/hkd/students/models/x"  # one script looks for what its first command has trained
    answer = f"""case "$*" in *save/hkd*) mkdir -p {made}; touch {made}/resnet8x4_double_best.pth;; esac
case "$1" in train_*) echo result in save/teachers/models/resnet20_vanilla;; esac"""
    return Interpreter(tmp_path_factory.mktemp("interpreter"), answer)


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    """Kind of data -> its folder; kind of network -> a checkpoint with random weights."""
    root = tmp_path_factory.mktemp("fixtures")
    clips = root / "clips"
    for i in range(8):
        frames = torch.randint(0, 255, (8, 40, 48, 3), dtype=torch.uint8).numpy()
        write_video(clips / f"{i}.avi", frames)
    (clips / "train.txt").write_text("".join(f"{i}.avi {i % 2}\n" for i in range(6)))
    (clips / "test.txt").write_text("6.avi 0\n7.avi 1\n")
    found = {ACTIONS: utd(root / "utd"), CLIPS: clips, DIGITS: root}
    for kind, (name, classes, shapes) in SMALL.items():
        found[kind] = random_weights(root / f"{kind}_best.pth", name, classes, shapes)
    return found


def random_weights(path, name, classes, shapes):
    torch.manual_seed(0)
    model = model_dict[name].fitted(shapes)(num_classes=classes)
    if set(shapes) == {"image"}:  # in a deep network, batch norm without statistics lets the logits explode
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.rand(8, *shapes["image"]))
    torch.save({"model": model.state_dict(), "meta": {"arch": name, "num_classes": classes}}, path)
    return path


def without(flags, argv):
    """The command less these flags and their values."""
    out, tokens = [], list(argv)
    while tokens:
        token = tokens.pop(0)
        if token not in flags:
            out.append(token)
        elif tokens and not tokens[0].startswith("-"):
            tokens.pop(0)
    return out


def reduced(argv, fixtures, teacher, student):
    """The same command on the fixtures; what comes last counts."""
    network = "--model" if "--model" in argv else "--model_s"
    data, out = kind_of_data(student), without(DROPPED, normalised(argv))
    out += [*data, "--data_folder", fixtures[data], network, SMALL[student][0]]
    if "--path_t" in out:
        out += ["--path_t", fixtures[teacher], "--model_t", SMALL[teacher][0], "--skip_validation"]
    if "--train_list" in out:
        out += ["--train_list", fixtures[CLIPS] / "train.txt", "--test_list", fixtures[CLIPS] / "test.txt"]
    if "--cakd_variant" in out:  # whose discriminator wants attention maps of 24 x 24 at least
        out += ["--image_size", "20"]
    return [*out, "--trials", "1"] if "--trials" in out else out


def dry(commands, call, fixtures, teacher, student, folder):
    program, *argv = call
    done = commands(program, *reduced(argv, fixtures, teacher, student), "--dry_run", "--num_workers", 0,
                    "--save_root", folder / "save", cwd=folder)  # fmt: skip
    assert done.code == 0, (call, done.out, done.err)
    losses = re.findall(r"dry run of \S+: loss ([\d.e+-]+) ", done.out)
    assert losses and not (folder / "save").exists(), done.out
    return losses


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_of_a_script_trains(script, interpreter, fixtures, commands, tmp_path):
    arguments, distill, teacher, student = SCRIPTS[script]
    calls = [
        c for c in interpreter.run(script, *arguments, KINETICS="DATA", SAVE="SAVE", GPUS="0") if c[0][:6] == "train_"
    ]

    def fits(program, *argv):
        lanes = sum(parse_students(argv, teacher=program == "train_teacher.py"), [])
        return not distill or {lane.distill for lane in lanes} == set(map(method_dict.resolve, distill.split(",")))

    call = next(c for c in calls if fits(*c))
    losses = dry(commands, call, fixtures, teacher, student, tmp_path)
    assert len(losses) == len(parse_students(call[1:], teacher=call[0] == "train_teacher.py")[0])


@pytest.mark.parametrize("method", METHODS)
def test_the_command_of_a_method_trains(method, fixtures, commands, tmp_path):
    (call,) = method_commands(method, "T.pth")
    assert dry(commands, call, fixtures, *METHODS[method], tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_a_command_of_a_page_trains(page, fixtures, commands, tmp_path):
    words, teacher, student = PAGES[page]
    calls = [c for c in commands_of(ROOT / page) if c[0].startswith("train_") and words in " ".join(c)]
    assert dry(commands, calls[0], fixtures, teacher, student, tmp_path)


def test_every_folder_of_training_scripts_is_here():
    """Apart from those that pass commands to SLURM, and studies."""
    folders = {p.parent for p in (ROOT / "scripts").rglob("*.sh") if "train_" in p.read_text()}
    known = {(ROOT / "scripts" / script).parent for script in SCRIPTS}
    assert {f.name for f in folders - known} <= {"slurm", "dev", "studies"}


# every command

CIFAR = ("--dataset", "cifar100", "--batch_size", "16", "--few_ratio", "1")
ARGUMENTS = {**{script: given[0] for script, given in RECIPES.items()}, "hsakd/teachers.sh": (".",)}
ARGUMENTS |= {"cifar100/patient_teachers.sh": ("vanillakd", "T.pth", "DATA", "SAVE")}
ARGUMENTS |= {f"hsakd/{name}.sh": (".",) for name in ("same_style", "different_style", "few_shot", "imagenet", "dpcd")}
ARGUMENTS |= {f"hsakd/online_{data}.sh": (".",) for data in ("cifar", "imagenet")}
ARGUMENTS |= {f"cifar100/{name}_study.sh": ("T.pth", "DATA", "SAVE", "1") for name in ("short", "zoo", "scaled")}
MARKS = {"aux_dpcd": "aux_dpcd", "_aux": "aux", "trn_": "trn", "tsm_": "tsm", "tsn_": "tsn", "_gaf": "sensor"}
MARKS |= {"sensor_": "sensor", "vit": "vit", "swin": "vit", "trn:": "trn", "tsm:": "tsm", "tsn:": "tsn"}


def kind_of_network(name):
    return next((kind for mark, kind in MARKS.items() if mark in name), "plain")


def sources():
    """Pages and scripts that train, and are not among the studies."""
    scripts = [p for p in (ROOT / "scripts").rglob("*.sh") if re.search("train_|/cifar100.sh|imagenet_", p.read_text())]
    names = [str(p.relative_to(ROOT / "scripts")) for p in scripts]
    asked = {"teachers/fetch_teachers.sh", "video/common.sh"}  # which train nothing themselves
    pages = [str(page.relative_to(ROOT)) for page in DOCUMENTED]
    return [*sorted({*pages, *names} - STUDIES - asked), "cifar100/method.py", *(f"table {name}" for name in tables())]


def calls_of(source, interpreter):
    """Every [program, arguments...] that trains."""
    if source.endswith(".md"):
        calls = [call for call in commands_of(ROOT / source) if len(call) > 1]
    elif source.endswith(".py"):
        calls = [call for method in method_dict for call in method_commands(method, "T.pth")]
    elif source.startswith("table "):
        calls = [["train_student.py", *cell.argv()] for cell in read_table(source.split()[1]).cells]
    else:
        calls = interpreter.run(source, *ARGUMENTS.get(source, ()), KINETICS="DATA", SAVE="SAVE", GPUS="0")
    return [call for call in calls if call and call[0].startswith("train_") and not {"--list", "--help"} & set(call)]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return image_sets.cifar100(tmp_path_factory.mktemp("cifar"))


def teachers_of(settings):
    """The architecture of every file that teaches: as told, else as the file is named, else of the student's kind."""
    given = settings.as_dict().get("model_t")
    named = [re.match(r"(.+)_(?:best|last)\.pth$", Path(path).name) for path in settings.teacher.path_t]
    likely = {
        "aux": "wrn_40_2_aux",
        "aux_dpcd": "wrn_40_2_aux_dpcd",
        "sensor": "trn_bninception",
        "tsm": "tsm:resnet50",
    }
    like = likely.get(kind_of_network(settings.model), "resnet32x4")
    like = "vit_tiny_cifar" if settings.teacher.path_t == ["VIT.pth"] else like
    return [given or (found[1] if found and found[1] in model_dict.table else like) for found in named]


def on_noise(argv, settings, cifar):
    """A command of CIFAR-100 with its own networks, on noise; its teachers have random weights."""
    argv = [*without(DROPPED, normalised(argv)), *CIFAR, "--data_folder", cifar]
    if "--teacher_image_size" in argv:  # 224 px would take minutes
        argv += ["--teacher_image_size", "40"]
    if not settings.as_dict().get("path_t"):
        return argv
    names = [model_for(name, (3, 32, 32)).name for name in teachers_of(settings)]
    for name in names:
        if not (path := cifar / f"{name}_best.pth").exists():
            random_weights(path, name, 100, {"image": (3, 32, 32)})
    return [*argv, "--skip_validation", "--path_t", *(cifar / f"{name}_best.pth" for name in names)]


def tried(call, plugin, fixtures, cifar):
    """The command in its small form, as told above."""
    program, *argv = call
    argv = [str(plugin) if before == "--plugin" else t for before, t in zip([None, *argv], argv, strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        for registry in (method_dict, model_dict):  # what a plugin adds is forgotten
            patch.setattr(registry, "table", dict(registry.table))
        settings = parse_students(argv, teacher=program == "train_teacher.py")[0][0]
    if settings.data.source.dataset == "unlabelled":  # tested on digits by a vote of neighbours
        paths = ["--data_folder", "pictures", "--eval_probe", "digits", "--path_t", fixtures["plain"]]
        sizes = ["--image_size", "16", "--teacher_image_size", "20", "--batch_size", "8"]
        argv = [*without({"--eval_probe_folder"}, argv), *paths, "--model_t", "resnet8", "--model_s", "resnet8", *sizes]
    elif settings.data.source.dataset == "cifar100":
        argv = on_noise(argv, settings, cifar)
    else:
        teacher = kind_of_network(teachers_of(settings)[0]) if settings.as_dict().get("path_t") else None
        student = kind_of_network(settings.as_dict().get("model") or settings.model)
        argv = reduced(argv, fixtures, teacher, student)
    return [program, *map(str, without({"--trial", "--seed", "--save_root"}, argv))]


@pytest.fixture(scope="module")
def known():
    """Commands that have been run already; many cells of a table differ in their number of trial alone."""
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("source", sources())
def test_every_command_trains(source, interpreter, fixtures, cifar, known, commands, tmp_path):
    (tmp_path / "plugin.py").write_text(re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)[0])
    image_sets.folder(tmp_path / "pictures")
    failed = []
    for call in calls_of(source, interpreter):
        program, *argv = tried(call, tmp_path / "plugin.py", fixtures, cifar)
        if (key := tuple(t for t in argv if t != str(tmp_path / "plugin.py"))) in known:
            continue
        known.add(key)
        save = tmp_path / "save"
        done = commands(program, *argv, "--dry_run", "--num_workers", 0, "--save_root", save, cwd=tmp_path)
        losses = [float(loss) for loss in re.findall(r"dry run of \S+: loss (\S+) ", done.out)]
        if done.code or not losses or not np.isfinite(losses).all() or save.exists():
            failed.append((call, (done.err or done.out)[-500:]))
    assert not failed, failed
