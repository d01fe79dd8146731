"""scripts/video: what is tested is the run that was trained, and the weights a network starts from are named."""

import pytest

from core.protocols import UserError
from helper.networks.load import started_from
from models import model_dict
from tests.support.interpreter import Interpreter

RESULT = 'case "$1" in train_*) echo "training"; echo "%s" ;; esac'
STARTS = {  # script -> network whose checkpoint is tested, weights it starts from
    "tsm_teacher": ("tsm_resnet50", "IMAGENET1K_V1"),
    "tsm_student": ("tsm_mobilenetv2", "IMAGENET1K_V1"),
    "tsm_distil": ("tsm_mobilenetv2", "IMAGENET1K_V1"),
    "tsn_teacher": ("tsn_swin_base", "IMAGENET1K_V1"),
    "tsn_student": ("tsn_resnet50", "IMAGENET1K_V2"),
    "tsn_distil": ("tsn_resnet50", "IMAGENET1K_V2"),
}


def interpreter(tmp_path, line):
    return Interpreter(tmp_path, RESULT % line)


@pytest.mark.parametrize("script", STARTS)
def test_the_run_that_was_trained_is_tested(script, tmp_path):
    """Two runs of the same networks lie there; the second one names itself."""
    model, weights = STARTS[script]
    arguments = ("T.pth",) if script.endswith("distil") else ()
    python = interpreter(tmp_path, "result in SAVE/second run")
    train, test = python.run(f"video/{script}.sh", *arguments, "--trial", "1", KINETICS="DATA", SAVE="SAVE")
    assert test[test.index("--path") + 1] == f"SAVE/second run/{model}_best.pth"
    assert train[-2:] == ["--trial", "1"] and train[train.index("--pretrained") + 1] == f"imagenet:{weights}"


def test_a_finished_run_is_tested_again_and_no_run_is_an_error(tmp_path):
    finished = "already finished: SAVE/one holds the result (--overwrite trains it again)"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, test = interpreter(tmp_path / "a", finished).run("video/tsn_student.sh", KINETICS="DATA", SAVE="SAVE")
    assert "SAVE/one/tsn_resnet50_best.pth" in test
    done = interpreter(tmp_path / "b", "stopped").bash("video/tsn_student.sh", KINETICS="DATA", SAVE="SAVE")
    assert done.returncode and "names no folder" in done.stderr


def test_unknown_weights_are_refused_with_those_there_are():
    with pytest.raises(UserError, match="no weights 'V9' for resnet50; it has IMAGENET1K_V1, IMAGENET1K_V2"):
        started_from(model_dict["tsn_resnet50"], "imagenet:V9")(num_classes=3)
    with pytest.raises(UserError, match="has no name after the colon"):
        started_from(model_dict["tsn_resnet50"], "imagenet:")


def test_networks_of_timm_are_named_after_their_weights():
    pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")
    with pytest.raises(UserError, match="timm has no weights 'A1' of resnet18.*such as timm:resnet50.a1_in1k"):
        started_from(model_dict["tsn:timm:resnet18"], "imagenet:A1")(num_classes=3)


def test_named_weights_are_the_ones_loaded(monkeypatch):
    from torchvision import models

    asked = []

    def state(self, *args, **kwargs):
        asked.append(self.name)
        return models.get_model("resnet50", weights=None).state_dict()

    monkeypatch.setattr(models.ResNet50_Weights, "get_state_dict", state)
    for which in ("imagenet", "imagenet:IMAGENET1K_V2"):
        started_from(model_dict["tsn_resnet50"], which)(num_classes=3)
    assert asked == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
