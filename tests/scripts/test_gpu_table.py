"""scripts/gpu_table.sh: its plan, its phases, and how it stops and is resumed."""

import pytest

from helper.options.parse import parse_students
from tests.support.interpreter import Interpreter


def test_phases(tmp_path):
    interpreter = Interpreter(tmp_path)
    data, save = tmp_path / "a b", tmp_path / "save"
    data.mkdir()
    (data / "cifar100.npz").write_bytes(bytes(3 << 20))
    assert "3 MiB" in interpreter.bash("gpu_table.sh", "plan", str(data)).stdout
    assert interpreter.bash("gpu_table.sh", "nonsense", str(data)).returncode == 2
    assert (
        "run the phase teacher first" in interpreter.bash("gpu_table.sh", "vgg8", str(data), SAVE_ROOT=str(save)).stderr
    )
    ((program, *argv),) = interpreter.run("gpu_table.sh", "teacher", str(data), "--max_steps", "1", SAVE_ROOT=str(save))
    (teacher,) = parse_students(argv, teacher=True)[0]
    assert program == "train_teacher.py" and teacher.training.schedule.epochs == 240
    assert (teacher.data.source.data_folder, teacher.training.loop.max_steps) == (str(data), 1)
    path = save / "teachers" / "models" / "resnet32x4_vanilla" / "resnet32x4_best.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    ((program, *argv),) = interpreter.run("gpu_table.sh", "vgg8", str(data), SAVE_ROOT=str(save))
    assert (program, argv[:3]) == ("scripts/run_table.py", ["simkd", "--only", "vgg8"]) and str(path) in argv
    ((program, *argv),) = interpreter.run("gpu_table.sh", "table", str(data), SAVE_ROOT=str(save))
    assert program == "scripts/make_table.py" and str(save / "gpu_table.md") in argv


def test_the_students_learn_from_the_teacher_of_its_phase(tmp_path):
    """Where teachers of earlier tries lie next to it."""
    save = tmp_path / "my runs"
    found = {name: save / "teachers" / "models" / f"resnet32x4_{name}" for name in ("vanilla", "vanilla_older", "mine")}
    for folder in found.values():
        folder.mkdir(parents=True)
        (folder / "resnet32x4_best.pth").touch()
    interpreter = Interpreter(tmp_path / "i", f"case $1 in train_*) echo 'result in {found['mine']}' ;; esac")
    interpreter.run("gpu_table.sh", "teacher", str(tmp_path), SAVE_ROOT=str(save))
    ((_, *argv),) = interpreter.run("gpu_table.sh", "vgg8", str(tmp_path), SAVE_ROOT=str(save))
    assert argv[argv.index("--path_t") + 1] == str(found["mine"] / "resnet32x4_best.pth")


@pytest.mark.parametrize("work", ["sleep 9", "trap '' TERM; sleep 9"])
def test_a_phase_out_of_time_asks_to_be_called_again(work, tmp_path):
    said = Interpreter(tmp_path, work).bash("gpu_table.sh", "teacher", str(tmp_path), LIMIT="1")
    assert said.returncode == 75 and "run the same command again to resume" in said.stdout


def test_a_killed_phase_is_not_out_of_time(tmp_path):
    said = Interpreter(tmp_path, "kill -9 $$").bash("gpu_table.sh", "teacher", str(tmp_path), LIMIT="30")
    assert said.returncode == 137 and "again" not in said.stdout
