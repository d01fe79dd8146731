"""scripts/bench/bench_teachers.py: epochs after the first ask the cache alone, and the table says what they cost."""

import re

from helper.networks.teacher_sources import LiveTeacher
from scripts.bench import bench_teachers, measuring
from tests.support.commands import squeezed

TINY = ["--teacher", "vit_micro_cifar", "--teacher_image_size", "40", "--student", "resnet8", "--images", "16"]
TINY += ["--batch_size", "8", "--rounds", "2"]


def test_the_teacher_is_asked_once_for_every_view(monkeypatch, tmp_path, capsys):
    asked, real = [], LiveTeacher.features

    def counted(self, batch, taps):
        asked.append(len(batch))
        return real(self, batch, taps)

    monkeypatch.setattr(LiveTeacher, "features", counted)
    monkeypatch.setattr(measuring, "clock", measuring.clock)  # main() sets it, and other tests in this process read it
    bench_teachers.main([*TINY, "--markdown", str(tmp_path / "table.md")])
    assert asked == [2, 8, 8]  # the first two to learn the width
    text = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out == text and "vit_micro_cifar at 40 px teaches resnet8" in text
    text = squeezed(text)
    (ratio,) = re.findall(r"every view in the cache \| [\d.]+ \| ([\d.]+) \(.* 1\.1 (?:PASS|FAIL) \|", text)
    (without,) = re.findall(r"no view in the cache \| [\d.]+ \| ([\d.]+) \|", text)
    assert float(ratio) > 0 and float(without) > 0  # which is larger, a busy machine decides
