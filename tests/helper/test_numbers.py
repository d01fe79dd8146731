"""Numbers and words of the command line that no run can mean, and batches that a network cannot take."""

import argparse

import pytest
import torch

from core.option import at_least, checked
from core.protocols import UserError
from core.taps import TappedNet
from distiller_zoo import method_dict
from helper.options.method_flags import flags_of
from helper.options.parse import parse
from helper.options.settings import TrainStudentConfigs, TrainTeacherConfigs, common_flags
from helper.training.stages import StagePlan, build_stages, refuse_single_values
from helper.training.step import StepSetup
from models import model_dict
from tests.support.cases import ALL
from tests.support.contract import plain_sgd


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--epochs", str(10**30)], "--epochs 1000000000000000000000000000000 must be at most 1,000,000"),
        (["--batch_size", str(10**9)], "--batch_size 1000000000 must be at most"),
        (["--image_size", "1"], "--image_size 1 must be at least 8"),
        (["--image_size", "100000"], "--image_size 100000 must be at most 4,096"),
        (["--trials", str(10**8)], "--trials 100000000 must be at most 10,000"),
        (["--seed", str(2**70)], r"the seed 1180591620717411303424 .*2\^63"),
        (["--num_workers", "99999"], "--num_workers 99999 must be at most 1,024"),
        (["--num_segments", "99999"], "--num_segments 99999 must be at most 1,000"),
        (["--learning_rate", "nan"], "--learning_rate nan must be"),
        (["--weight_decay", "inf"], "--weight_decay inf must be"),
        (["--save_root", ""], "--save_root is empty: give a value or leave the flag out"),
        (["--data_folder", " "], "--data_folder is empty"),
        (["--distill", ""], "--distill is empty"),
    ],
)
def test_absurd_values_are_one_sentence(argv, words):
    with pytest.raises(UserError, match=words):
        parse(argv, teacher=True)


@pytest.mark.parametrize("teacher", [True, False])
def test_no_number_is_absurd(teacher):
    """Every flag of both scripts refuses what is not finite, or larger than any setting, and names itself."""
    for flag in common_flags(TrainTeacherConfigs if teacher else TrainStudentConfigs):
        value = {int: str(10**30), float: "nan"}.get(flag.type)
        if value is not None:
            with pytest.raises(UserError, match=flag.dest if flag.dest != "seed" else "the seed"):
                parse([flag.names[0], value], teacher=teacher)


def test_no_number_of_a_method_is_absurd():
    for name in method_dict:
        own = [flag for flag in flags_of(method_dict[name]) if flag.type is float and flag.nargs is None]
        for flag in own[:2]:
            with pytest.raises(UserError, match=flag.names[0]):
                parse(["--distill", name, flag.names[0], "inf"], teacher=method_dict[name].teacher_mode == "absent")


def test_an_action_of_argparse_checks_numbers():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bins", type=int, nargs="+", action=checked(at_least(1)))
    assert parser.parse_args(["--bins", "3", "4"]).bins == [3, 4]
    for words in (["3", "0"], [str(10**30)]):
        with pytest.raises(UserError, match="--bins"):
            parser.parse_args(["--bins", *words])


def test_empty_words_of_a_student():
    for argv, words in ((["--model_s", ""], "--model_s is empty"), (["--path_t", "a.pth", ""], "--path_t is empty")):
        with pytest.raises(UserError, match=words):
            parse(argv, teacher=False)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--init_lr", "nan"),
        ("--init_lr", "inf"),
        ("--weight_decay", "nan"),
        ("--views", "10000000"),
        ("--manual_seed", str(2**70)),
    ],
)
def test_the_probe_checks_its_numbers(flag, value):
    import eval_rep

    with pytest.raises(UserError, match=f"{flag} {value} must be"):
        eval_rep.parse(["--s_path", "x.pth", flag, value])


def test_a_network_that_normalises_one_value_is_refused_before_the_first_step():
    spec = model_dict["resnet8"]

    def check(size, smallest):
        net = TappedNet(spec(num_classes=3), spec, ())
        before = {k: v.clone() for k, v in net.state_dict().items()}
        refuse_single_values(net, {"image": (3, size, size)}, smallest)
        assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        if size > 4 or smallest > 1:
            net({"image": torch.rand(smallest, 3, size, size)})  # torch itself has no objection either

    check(8, 1)
    check(4, 2)
    with pytest.raises(UserError, match="resnet8 normalises over the batch.*in . of its layers: choose another"):
        check(4, 1)


def test_batches_of_one_and_micro_batches_of_none_are_refused():
    def stages(method, batch_size, accumulate=1):
        case = next(ALL[name] for name in ALL if name.startswith(f"{method}-resnet"))
        setup = StepSetup(plain_sgd, accumulate=accumulate, wrap=lambda module: module)
        teacher = case[3]() if case[3] else None
        return next(build_stages(case[0], case[1], case[2], teacher, case[4], setup, StagePlan(batch_size, 1)))

    with pytest.raises(UserError, match="--accumulate 8 is above the 4 samples of a batch"):
        stages("kd", 4, 8)
    for method in ("rkd", "sp", "irg", "pkt", "cc", "hkd", "luminet"):
        assert method_dict[method].relational
        with pytest.raises(UserError, match=f"--distill {method} compares the samples of a batch"):
            stages(method, 4, 4)
        assert stages(method, 4, 2)
    assert stages("kd", 4, 4)
