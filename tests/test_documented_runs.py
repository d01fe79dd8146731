"""A training command of every page and of every folder of scripts is run on fixtures with --dry_run.

It parses, builds and trains one batch; the others are parsed, in test_documented_commands.py. What is replaced: the
data folder, and large data sets, by the fixture of the family (noise in the layout of the real data; digits for
images); networks by the smallest of their kind, teachers by such a network with random weights; images get 16 px (clips
32 px and 2 frames), batches 8 samples or fewer; of several trials there is one; nothing starts from published weights
or a frozen backbone. Whatever else a command says, it says here.
"""

import re

import pytest
import torch
from commands import ROOT
from interpreter import Interpreter
from recordings import utd, write_video
from test_documented_commands import commands_of

from distiller_zoo import method_dict
from helper.options import normalised, parse_lanes
from models import model_dict

DIGITS = ("--dataset", "digits", "--image_size", "16", "--batch_size", "8")
ACTIONS = ("--image_size", "32", "--window", "32", "--num_segments", "2", "--batch_size", "4")
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
METHODS = ("kd", "crd", "ab", "ofa_kd", "dml")  # logits, a memory bank, a first stage, exits of its own, peers
SCRIPTS = {  # script -> (arguments, --distill of the command that is run, kind of teacher, kind of student)
    **{f"cifar100/methods/{m}.sh": (() if m == "dml" else ("T.pth",), m, "plain", "plain") for m in METHODS},
    "cifar100/methods/hsakd_teacher.sh": ((), "hsakd_teacher", None, "aux"),
    "cifar100/methods/dpcd.sh": (("T.pth",), "dpcd", "aux_dpcd", "aux_dpcd"),
    "cifar100/scaled_study.sh": (("T.pth", "DATA", "SAVE", "1"), "", "plain", "plain"),
    "cifar100/simkd_table.sh": ((), "simkd", "plain", "plain"),
    "cifar100/repdistiller_same_table.sh": ((), "hint", "plain", "plain"),
    "quickstart.sh": ((), "simkd", "plain", "plain"),
    "train_teachers.sh": ((), "vanilla", None, "plain"),
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
PAGES = {  # page -> words of the command, kind of teacher, kind of student
    "README.md": ("train_teacher.py", None, "plain"),
    "docs/classic.md": ("--distill simkd", "plain", "plain"),
    "docs/hsakd.md": ("--distill hsakd ", "aux", "aux"),
    "docs/vskd.md": ("--modality_t video", "trn", "sensor"),
}


DROPPED = {"--pretrained", "--pretrained_backbone", "--freeze_backbone", "--gpu_id", "--multiprocessing_distributed"}


def kind_of_data(kind):
    return ACTIONS if kind in ("trn", "sensor") else CLIPS if kind in ("tsm", "tsn") else DIGITS


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpreter")
    return Interpreter(folder, answer="echo result in save/teachers/models/resnet20_vanilla")


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
        model = model_dict[name].fitted(shapes)(num_classes=classes)
        found[kind] = root / f"{kind}_best.pth"
        torch.save({"model": model.state_dict(), "meta": {"arch": name, "num_classes": classes}}, found[kind])
    return found


def reduced(argv, fixtures, teacher, student):
    """The same command on the fixtures; what comes last counts."""
    network = "--model" if "--model" in argv else "--model_s"
    data, out, tokens = kind_of_data(student), [], normalised(argv)
    while tokens:
        token = tokens.pop(0)
        if token not in DROPPED:
            out.append(token)
        elif tokens and not tokens[0].startswith("-"):
            tokens.pop(0)
    out += [*data, "--data_folder", fixtures[data], network, SMALL[student][0]]
    if "--path_t" in out:
        out += ["--path_t", fixtures[teacher], "--model_t", SMALL[teacher][0], "--skip_validation"]
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
        lanes = sum(parse_lanes(argv, teacher=program == "train_teacher.py"), [])
        return not distill or {lane.distill for lane in lanes} == {method_dict.resolve(distill)}

    call = next(c for c in calls if fits(*c))
    losses = dry(commands, call, fixtures, teacher, student, tmp_path)
    assert len(losses) == len(parse_lanes(call[1:], teacher=call[0] == "train_teacher.py")[0])


@pytest.mark.parametrize("page", PAGES)
def test_a_command_of_a_page_trains(page, fixtures, commands, tmp_path):
    words, teacher, student = PAGES[page]
    calls = [c for c in commands_of(ROOT / page) if c[0].startswith("train_") and words in " ".join(c)]
    assert dry(commands, calls[0], fixtures, teacher, student, tmp_path)


def test_every_folder_of_training_scripts_is_here():
    """Those that hand commands on to SLURM aside."""
    folders = {p.parent for p in (ROOT / "scripts").rglob("*.sh") if "train_" in p.read_text()}
    known = {(ROOT / "scripts" / script).parent for script in SCRIPTS}
    assert {f.name for f in folders - known} <= {"slurm"}
