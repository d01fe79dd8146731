"""Every command of a page or script that trains nothing is run, in a folder that has the files it names.

Those files are small: noise in the layout of the real data, networks with random weights, run folders written without
training. The commands stay as they are but for what SHORTER says, which would take long or need a network connection.
Commands that train are run in test_documented_runs.py, those of ELSEWHERE in tests of their own; studies ran to their
end, their tables lie in results/.
"""

import itertools
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from models import model_dict
from tests.commands.test_documented_commands import PAGES, TRAIN, commands_of
from tests.commands.test_documented_runs import ARGUMENTS, STUDIES
from tests.support import image_sets
from tests.support.commands import ROOT
from tests.support.interpreter import Interpreter
from tests.support.packages import need
from tests.support.recordings import left_bright, utd, write_inertial, write_video
from tests.support.run_folders import write_run

need("safetensors", "onnx", "onnxscript", "onnxruntime")

SHORTER = {  # program -> what is said last
    "scripts/bench/bench.py": "--steps 1 --warmup 0 --rounds 1 --pair resnet8:resnet8 --batch_size 8 "
    "--images 64 --threads 1",
    "eval_rep.py": "--views 2 --epochs 1",  # of ten, and of many
    "scripts/bench/bench_video.py": "--size 16 --repeats 1 --rounds 1 --networks resnet8",
    "scripts/dev/attack.py": "--minutes 0",
    "scripts/export_student.py": "--forms safetensors --images 8",  # the others: helper/test_export.py
    "scripts/run_table.py": "--dry-run --trials 1",
    "scripts/teachers/fetch_teachers.py": "--list",
}
ELSEWHERE = {  # program -> where it is run
    "scripts/slurm/submit.py": "scripts/test_hosts.py, which starts its jobs",
    "scripts/export_onnx.py": "commands/test_vskd_commands.py",
    "scripts/sort_imagenet_val.py": "dataset/test_imagenet.py",
    "scripts/bench/bench_cakd.py": "scripts/test_bench_cakd.py, for it starts a process for each step it compares",
    "scripts/bench/bench_hsakd.py": "scripts/test_bench_hsakd.py, likewise",
    "scripts/tune.py": "scripts/test_tune.py, for each trial is a process",
    "scripts/compare.py": "scripts/test_compare.py, whose runs have predictions",
    "helper/options/listing.py": "helper/test_listing.py, for it writes into the repository",
    "helper/options/flags.py": "helper/test_help.py, for it writes into the repository",
}
SHORT_CLIPS = "--num_segments 2 --image_size 64 --short_side 64 --crop_size 64"
SCRIPTS = (
    "teachers/fetch_teachers.sh",
    "quickstart.sh",
    "cakd/ablation.sh",
    "cakd/student_sweep.sh",
    "hsakd/transfer.sh",
)
SCRIPTS += tuple(f"video/{kind}_{part}.sh" for kind in ("tsm", "tsn") for part in ("teacher", "student", "distil"))
SCRIPTS += tuple(f"cifar100/{size}_study.sh" for size in ("short", "zoo", "scaled"))
SLOW = {"docs/speed.md", "bench/bench_cpu.sh", "bench/bench_gpu.sh"}  # many processes, each of which compiles
SLOW |= {
    "video/tsn_teacher.sh",
    "video/tsn_student.sh",
    "video/tsn_distil.sh",
}  # large networks; those of TSM say the same
SLOW |= {"CONTRIBUTING.md"}  # the recorder of refactors, which trains fourteen times


def put_network(path, name):
    """A checkpoint with random weights, as a run leaves it; in CKPT, as MMRazor does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "sensor_cnn":
        shutil.copy(next(path.parents[1].glob("sensor/**/sensor_cnn_best.pth")), path)
        return
    spec = model_dict[name]
    classes = 400 if spec.input == "video" else 100
    torch.manual_seed(0)
    state = spec(num_classes=classes).state_dict()
    if path.name == "CKPT":
        torch.save({"meta": {"epoch": 1}, "state_dict": {f"architecture.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save({"model": state, "meta": {"arch": name, "num_classes": classes}}, path)


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    answer = 'case "$1" in train_*) echo "result in save/teachers/models/RUN" ;; esac'
    interpreter = Interpreter(tmp_path_factory.mktemp("interpreter"), answer)
    (interpreter.tree / "results").mkdir()
    return interpreter


@pytest.fixture(scope="module")
def place(tmp_path_factory, commands):
    """The folder that commands are run in: data sets where they are looked for, finished runs in save/ and SAVE/, and a
    network of recordings, which must say what it reads."""
    root = tmp_path_factory.mktemp("house")
    work = root / "work"
    for folder in ("data", "work/data", "work/DATA", "work/results"):
        (root / folder).mkdir(parents=True)
    for name in ("data", "work/DATA"):
        image_sets.cifar100(root / name)
    image_sets.stl10(work / "data")
    image_sets.tiny_imagenet(work / "data")
    utd(work / "UTD")
    (work / "pictures").mkdir()
    (work / "photos").mkdir()
    for picture in ("pictures/a.png", "photos/a.png", "photo.jpg"):
        Image.new("RGB", (40, 32), "teal").save(work / picture)
    for subject in (1, 2):
        write_inertial(work / f"a1_s{subject}_t1_inertial.mat", subject)
    for name in ("DIR", "DATA"):
        for part in ("train", "val"):
            lines = []
            for i in range(2):
                write_video(work / name / f"videos_{part}" / f"{i}.avi", left_bright(8, i, (48, 64)))
                lines.append(f"{i}.avi {i}\n")
            (work / name / f"kinetics400_{part}_list_videos.txt").write_text("".join(lines))
    shutil.copytree(work / "DIR" / "videos_val", work / "FOLDER")
    for name in ("save", "SAVE"):
        for method in ("kd", "simkd -c 0 -d 0 -b 1"):
            write_run(work / name, f"--distill {method}", [60, 70], teacher="resnet32x4")
        alone = write_run(work / name, "--distill vanilla", [50, 60], alone=True)
        put_network(alone / "resnet8x4_best.pth", "resnet8x4")
        write_run(work / name, "--distill vanilla --dataset digits --model_s resnet8", [50, 60], alone=True)
    put_network(
        work / "save" / "teachers" / "models" / "RUN" / "resnet8x4_best.pth", "resnet8x4"
    )  # named by interpreter()
    sensor = ("--dataset", "utd_mhad", "--data_folder", "UTD", "--modality", "accel", "--model", "sensor_cnn")
    commands(
        "train_teacher.py", *sensor, "--epochs", 1, "--batch_size", 4, "--save_root", "../sensor", cwd=work
    ).finished()
    return work


@pytest.fixture(scope="module")
def known():
    """Commands that have been run already."""
    return set()


def network_in(file, call):
    """Name of the network that a command expects in a file, as far as it says."""
    told = [value for flag, value in itertools.pairwise(call) if flag in ("--model", "--arch")]
    named = re.match(r"(.+)_(?:best|last)\.pth$", Path(file).name)
    return {
        "CKPT": "tsm_mobilenetv2",
        "STUDENT_best.pth": "sensor_cnn",
        "STUDENT.pth": "sensor_cnn" if {"utd_mhad", "--file"} & set(call) else "resnet8",
        **({file: named[1]} if named and named[1] in model_dict.table else {}),
        **({file: told[0]} if told else {}),
    }.get(file, "resnet8")


def calls_of(source, interpreter):
    """[program, arguments...] of all that does not train."""
    if source.endswith(".md"):
        calls = commands_of(ROOT / source)
    else:
        given = ARGUMENTS.get(source, (".",) if source == "hsakd/transfer.sh" else ())
        calls = interpreter.run(source, *given, KINETICS="DATA", SAVE="SAVE", GPUS="0")
    return [call for call in calls if call and call[0] not in {*TRAIN, *ELSEWHERE} and not call[0].startswith("-")]


def shortened(call):
    at = call.index("--") if "--" in call else len(call)
    own = SHORTER.get(call[0], SHORT_CLIPS if "kinetics400" in call else "")
    return [*call[:at], *([] if own in call else own.split()), *call[at:]]


def found(place, pattern):
    files = sorted(place.glob(pattern))
    assert files, f"nothing is called {pattern}"
    return files


def test_no_script_is_left_out():
    scripts = sorted((ROOT / "scripts").rglob("*.sh"))
    calling = {str(p.relative_to(ROOT / "scripts")) for p in scripts if any(c[0] not in TRAIN for c in commands_of(p))}
    assert calling - {*SCRIPTS, *SLOW} <= STUDIES | {"run_table.sh", "check.sh"}
    tests = {test: (ROOT / "tests" / test.split(",")[0]).read_text() for test in ELSEWHERE.values()}
    assert all(Path(program).stem in tests[test] for program, test in ELSEWHERE.items())


# commands.md: test_printed_commands.py runs its rows
with_calls = [
    page
    for page in PAGES
    if page.name != "commands.md" and any(c[0] not in {*TRAIN, *ELSEWHERE} for c in commands_of(page))
]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(source, marks=[pytest.mark.slow] * (source in SLOW))
        for source in (
            *(str(page.relative_to(ROOT)) for page in with_calls),
            *SCRIPTS,
            "bench/bench_cpu.sh",
            "bench/bench_gpu.sh",
        )
    ],
)
def test_every_command_runs(source, interpreter, place, known, commands):
    failed = []
    for call in map(shortened, calls_of(source, interpreter)):
        call = [t for token in call for t in (map(str, found(place, token)) if "*" in token else [token])]
        key = tuple(Path(t).name if t.endswith(".pth") else t for t in call)
        if key in known:
            continue
        known.add(key)
        for file in {t for t in call if t in ("CKPT", "FILE") or t.endswith(".pth")}:
            put_network(place / file, network_in(file, call))
        done = commands(*call, cwd=place)
        if done.code or not done.out:
            failed.append(f"{shlex.join(call)}: {(done.err or done.out)[-500:]}")
        written = [value for flag, value in itertools.pairwise(call) if flag in ("--out", "--json")]
        failed += [f"{shlex.join(call)} wrote no {file}" for file in written if not (place / file).exists()]
    assert not failed, "\n".join(failed)
