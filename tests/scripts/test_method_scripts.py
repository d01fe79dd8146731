"""scripts/cifar100/methods/: one literal command a method. Run here with an interpreter that says what it was asked."""

import pytest

from distiller_zoo import method_dict
from helper.options.listing import paper_of
from helper.options.parse import parse
from tests.support.commands import ROOT
from tests.support.interpreter import Interpreter

FOLDER = ROOT / "scripts" / "cifar100" / "methods"
RUN = "save/hkd/students/models/x"  # where the stand-in says that its result lies
RELEASED = {"cat_kd"}  # settings of this pair that are not the paper's


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return Interpreter(tmp_path_factory.mktemp("interpreter"), f"echo 'result in {RUN}'")


@pytest.fixture(scope="module")
def run(interpreter):
    """Script -> the settings of every command it runs."""

    def run(method):
        given = () if method_dict[method].teacher_mode != "frozen" else ("T.pth",)
        calls = interpreter.run(f"cifar100/methods/{method}.sh", *given, "--trial", "1")
        return [parse(argv, teacher=program == "train_teacher.py") for program, *argv in calls]

    return run


def test_every_method_has_a_script_and_every_script_a_method():
    assert {path.stem for path in FOLDER.glob("*.sh")} == {*method_dict}


@pytest.mark.parametrize("method", method_dict)
def test_the_command_is_the_published_one(method, run):
    *_, settings = run(method)
    assert settings.distill == method and settings.run.trial == "1"
    is_teacher = settings.is_teacher
    network = settings.model.replace("32", "8") if is_teacher else settings.model
    usual = "vit_tiny_cifar_distilled" if method == "deit" else "resnet8x4"
    assert network.removesuffix("_dpcd").removesuffix("_aux") == usual
    assert (settings.data.source.dataset, settings.training.schedule.epochs) == ("cifar100", 240)
    assert (
        settings.training.loop.batch_size,
        settings.training.schedule.lr_decay_epochs,
        settings.training.optim.weight_decay,
    ) == (64, "150,180,210", 5e-4)
    assert settings.training.schedule.learning_rate == (0.025 if method == "mlkd" else 0.05)
    if method_dict[method].teacher_mode == "frozen":
        assert settings.teacher.path_t and settings.teacher.model_t.startswith(
            ("resnet32x4", "resnet8x4_double", "vit_tiny_cifar")
        )
    weights = ("cls", "div", "beta", "kd_T")
    protocol = [] if is_teacher else ["--protocol", "authors"]
    theirs = parse(["--distill", method, *protocol], teacher=is_teacher)
    if method not in RELEASED and not is_teacher:
        assert {k: settings.as_dict()[k] for k in weights} == {k: theirs.as_dict()[k] for k in weights}
    switches = {
        "hkd_layer_weights",
        "mlkd_halved",
        "mlkd_weak_relations",
        "cat_kd_raw",
        "dpcd_as_published",
        "ldrld_as_published",
    }  # published behaviour that is off by default
    of_the_pair = {"dpcd_beta_min", "dpcd_beta_max"}
    for name in settings.method_flags.keys() - switches - of_the_pair:
        assert settings.as_dict()[name] == theirs.as_dict()[name], name
    header = (FOLDER / f"{method}.sh").read_text().partition("source ")[0]
    assert paper_of(method_dict[method])["venue"] in header and ("ublished" in header or "Reported" in header)
    assert max(map(len, (FOLDER / f"{method}.sh").read_text().splitlines())) <= 120


def test_hkd_trains_its_auxiliary_teacher_first(run):
    first, second = run("hkd")
    assert (first.distill, first.model, first.loss.beta, first.teacher.path_t) == (
        "pkt",
        "resnet8x4_double",
        30000,
        ["T.pth"],
    )
    assert first.run.save_root == "save/hkd" and second.teacher.path_t == [
        f"{RUN}/resnet8x4_double_best.pth"
    ]  # this very run's


def test_a_flag_in_the_place_of_the_teacher_is_refused(interpreter):
    done = interpreter.bash("cifar100/methods/kd.sh", "--trial", "1")
    assert done.returncode == 2 and not (interpreter.venv / "asked").read_text()
    assert done.stderr == (
        "kd.sh: '--trial' is a flag, and the first word must be the path of a resnet32x4 checkpoint: flags come last\n"
    )
    done = interpreter.bash("cakd/student_sweep.sh", "--epochs", "3")  # which installs the extras too
    assert done.returncode == 2 and "the first word must be the folder of ImageNet" in done.stderr
