"""Students trained together, trials in a row, and the teacher cache: the same numbers as one run at a time."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core import machine
from core.protocols import Batch, TeacherSource, UserError
from core.taps import TappedNet
from helper.machine import lane_memory
from helper.machine.stopper import Interrupted
from helper.networks import teacher_cache as under_test
from helper.networks.checkpoint import load_file
from helper.networks.teacher_cache import CacheConfig, CachedTeacher, CacheLayout, cache_key, feature_widths, locked
from helper.networks.teacher_sources import LiveTeacher
from helper.options.parse import parse, parse_students
from helper.session import resumable
from helper.training.run import EpochPlace, Lanes
from tests.support.commands import ROOT
from tests.support.run_folders import TIMING, rows_of
from tests.support.toys import ToyData, cnn


def assert_same_run(one, two):
    without = (*TIMING, "cache_hit_rate")
    assert rows_of(one, without) == rows_of(two, without)
    (last_one,), (last_two,) = one.glob("*_last.pth"), two.glob("*_last.pth")
    a, b = load_file(last_one)["step_state"]["trained"], load_file(last_two)["step_state"]["trained"]
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def runs(root):
    return {p.name: p for p in (root / "students" / "models").iterdir()}


SHORT = ("--epochs", 2, "--max_steps", 3, "--tb_backend", "none", "--batch_size", 32)


@pytest.fixture(scope="module")
def apart(commands, teacher, tmp_path_factory):
    """The runs, one process each."""
    root = tmp_path_factory.mktemp("apart")
    for distill in ("kd", "simkd", "semckd"):
        commands.student("--path_t", teacher, "--distill", distill, *SHORT, "--save_root", root).finished()
    return root


def test_lanes_equal_separate_runs(commands, teacher, apart, tmp_path):
    done = commands.student(
        "--path_t", teacher, "--distill", "kd,simkd,semckd", *SHORT, "--save_root", tmp_path
    ).finished()
    assert "[simkd]" in done.out and done.out.count("teacher accuracy") == 1
    assert runs(tmp_path).keys() == runs(apart).keys()
    for name, folder in runs(tmp_path).items():
        assert_same_run(folder, runs(apart)[name])
        parameters = json.loads((folder / "parameters.json").read_text())
        assert set(parameters["lanes"]) == runs(apart).keys()
        assert (folder / "log.txt").read_text().count("Epoch 2") == 1


def test_lanes_are_continued_after_a_signal_and_a_kill(commands, teacher, apart, tmp_path):
    """In the second of three steps, then in the first of the next epoch."""
    argv = ("--path_t", teacher, "--distill", "kd,simkd,semckd", *SHORT, "--save_root", tmp_path)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, 137)):
        done = commands.student(*argv, signals=[[5, number]])
        assert done.code == code, (done.out, done.err)
    commands.student(*argv).finished()
    assert runs(tmp_path).keys() == runs(apart).keys()
    for name, folder in runs(tmp_path).items():
        assert_same_run(folder, runs(apart)[name])


def test_lanes_of_two_networks_equal_separate_runs(commands, teacher, apart, tmp_path):
    argv = ("--path_t", teacher, "--distill", "kd", *SHORT, "--save_root")
    for networks in ("resnet8,resnet14", "resnet14"):
        commands.student(*argv, tmp_path / networks, "--model_s", networks).finished()
    alone = runs(apart) | runs(tmp_path / "resnet14")
    together = runs(tmp_path / "resnet8,resnet14")
    assert len(together) == 2
    for name, folder in together.items():
        assert_same_run(folder, alone[name])


def test_a_student_that_diverges_says_so_at_once_and_the_other_goes_on(commands, teacher, tmp_path):
    argv = ("--path_t", teacher, "--distill", "simkd,kd", "--weight", "simkd=1e36", *SHORT, "--precision", "fp32")
    argv = (*argv, "--save_root", tmp_path)
    stopped = commands.student(*argv, signals=[[8, signal.SIGTERM]])  # kd's second epoch
    assert stopped.code == 143 and "in epoch 2 after step 2" in stopped.err, (stopped.out, stopped.err)
    done = commands.student(*argv)
    done.refused("became NaN or infinite in epoch 1", "there is no checkpoint yet")
    for out in (stopped.out, done.out):
        assert re.search(r"\[simkd\] the \w+ became NaN or infinite in epoch 1", out)
    assert done.out.index("[simkd] the ") < done.out.index("[kd]  * Epoch 2, train")
    (finished,) = (name for name, folder in runs(tmp_path).items() if (folder / "parameters.json").exists())
    assert "_kd_" in finished


def test_a_student_that_cannot_be_saved_ends_in_every_process(commands, teacher, apart, tmp_path):
    """Rank 0 writes. If it alone gave the student up, the others would wait for numbers of that student."""
    small, large = (
        (folder / "resnet8_last.pth").stat().st_size
        for method in ("_kd_", "_simkd_")
        for name, folder in runs(apart).items()
        if method in name
    )
    argv = ("--path_t", teacher, "--distill", "simkd,kd", *SHORT, "--skip_validation", "--save_root", tmp_path)
    done = commands.student(*argv, ranks=2, in_rank=(0, {"fsize": (small + large) // 2}))
    done.refused("cannot write", "resnet8_last.pth")
    (finished,) = (name for name, folder in runs(tmp_path).items() if (folder / "parameters.json").exists())
    assert "_kd_" in finished


def test_one_of_the_students_that_are_left_shows_progress():
    lanes = Lanes(2, torch.device("cpu"))
    one, two = (SimpleNamespace(place=EpochPlace(0, 1, 0), shown=True) for _ in range(2))
    for lanes.training, shown in (([one, two], [True, False]), ([two], [True])):
        lanes.next_epoch()
        assert [run.shown for run in lanes.training] == shown


def test_trials_count_on_and_keep_their_own_order(commands, teacher, tmp_path):
    argv = ("--path_t", teacher, "--distill", "kd", *SHORT)
    commands.student(*argv, "--trials", 2, "--save_root", tmp_path / "a").finished()
    commands.student(*argv, "--trial", 1, "--save_root", tmp_path / "b").finished()
    together, alone = runs(tmp_path / "a"), runs(tmp_path / "b")
    assert len(together) == 2
    (name,) = alone
    assert_same_run(together[name], alone[name])
    first, second = (rows_of(folder)[0]["train_loss"] for folder in together.values())
    assert first != second


def test_a_signal_in_the_last_epoch_of_a_trial_stops_before_the_next(commands, teacher, tmp_path):
    argv = ("--path_t", teacher, "--distill", "kd", *SHORT, "--trials", 2, "--save_root", tmp_path)
    stopped = commands.student(*argv, signals=[[6, signal.SIGTERM]])
    assert stopped.code == 143 and stopped.err == (
        "SIGTERM: stopped before trial 1; to resume, run the same command\n"
    ), (stopped.out, stopped.err)
    ((_, first),) = runs(tmp_path).items()
    assert (first / "parameters.json").exists()
    commands.student(*argv).finished()
    assert len(runs(tmp_path)) == 2


def test_what_starts_something_again_is_not_repeated():
    line = "--path_t T.pth --overwrite --teacher_cache C --rebuild_cache"
    stop = resumable(Interrupted("stopped", 143), parse(line.split(), teacher=False))
    assert str(stop) == "stopped; to resume, run the same command without --overwrite and --rebuild_cache"
    again = resumable(stop, parse(["--model", "resnet8"], teacher=True))
    assert again.code == 143 and str(again).endswith("run the same command")


def test_cached_equals_uncached_and_a_second_run_asks_the_cache_alone(commands, teacher, apart, tmp_path):
    argv = ("--path_t", teacher, "--distill", "kd", *SHORT, "--teacher_cache", tmp_path / "cache")
    rates = []
    for name in ("cold", "warm"):
        commands.student(*argv, "--save_root", tmp_path / name).finished()
        ((label, folder),) = runs(tmp_path / name).items()
        assert_same_run(folder, runs(apart)[label])
        rates.append(rows_of(folder)[-1]["cache_hit_rate"])
    assert rates[0] < 0.5 and rates[1] == 1.0


def test_trials_on_parts_of_a_set_share_one_cache(commands, teacher, tmp_path):
    """Two draws of half of the digits: the same rows as without a cache, and the second finds views of the first."""
    argv = ("--path_t", teacher, "--distill", "kd", "--epochs", 2, "--few_ratio", 0.5, "--trials", 2, *SHORT[4:])
    commands.student(*argv, "--save_root", tmp_path / "without").finished()
    cached = ("--teacher_cache", tmp_path / "cache", "--save_root", tmp_path / "with")
    commands.student(*argv, *cached).finished()
    alone = runs(tmp_path / "without")
    rates = []
    for label, folder in runs(tmp_path / "with").items():
        assert_same_run(folder, alone[label])
        rates.append(rows_of(folder)[0]["cache_hit_rate"])
    assert len(rates) == 2 and min(rates) < max(rates) and max(rates) > 0.01


def test_pooled_features_are_kept_if_asked(commands, teacher, tmp_path):
    argv = ("--path_t", teacher, "--distill", "srrl", *SHORT)
    without = commands.student(*argv, "--teacher_cache", tmp_path / "cache", "--save_root", tmp_path / "apart")
    assert "--cache_pooled stores it" in without.finished().out and not (tmp_path / "cache").exists()
    rates = []
    for name in ("cold", "warm"):
        cached = ("--teacher_cache", tmp_path / "cache", "--cache_pooled", "--save_root", tmp_path / name)
        commands.student(*argv, *cached).finished()
        ((label, folder),) = runs(tmp_path / name).items()
        assert_same_run(folder, runs(tmp_path / "apart")[label])
        rates.append(rows_of(folder)[-1]["cache_hit_rate"])
    assert rates[0] < 0.5 and rates[1] == 1.0


def test_lanes_that_do_not_fit_are_refused(commands, teacher, tmp_path):
    argv = ("--path_t", teacher, "--distill", "kd,simkd,semckd", *SHORT, "--save_root", tmp_path)
    commands.student(*argv, memory_left=1000).refused("3 students do not fit", "list at most about 1", "--distill")


def test_how_many_lanes_fit(monkeypatch):
    monkeypatch.setattr(lane_memory, "free", lambda device: 130)
    lanes = lane_memory.LaneMemory(5, torch.device("cpu"))
    with pytest.raises(UserError, match="5 students .*each needs 60 bytes, 130 are free.*at most about 3"):
        lanes.after_first_step(60)
    with pytest.raises(UserError, match="at most about 4"):  # the two seen, and two more of 55 bytes
        lanes.after_first_step(50)
    fitting = lane_memory.LaneMemory(3, torch.device("cpu"))
    for _ in range(3):
        fitting.after_first_step(60)
    failed = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    assert machine.out_of_memory(failed) and not machine.out_of_memory(RuntimeError("shapes"))
    assert "at most about 3" in str(fitting.exhausted(failed))
    p = torch.nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    assert lane_memory.kept_by([optimizer]) == 0
    p.sum().backward()
    optimizer.step()
    assert lane_memory.kept_by([optimizer]) == 2 * 10 * 4


def test_methods_that_need_maps_say_so(commands, teacher, tmp_path):
    argv = ("--path_t", teacher, "--distill", "at", *SHORT, "--teacher_cache", tmp_path / "cache")
    done = commands.student(*argv, "--save_root", tmp_path).finished()
    assert "stores logits" in done.out and not (tmp_path / "cache").exists()


def test_wrong_lists_are_refused(commands, teacher, tmp_path):
    argv = ("--path_t", teacher, *SHORT, "--save_root", tmp_path)
    commands.student("--distill", "kd,kd", *argv).refused("distinct names")
    commands.student("--distill", "at,kd,attention", *argv).refused("list resnet8 with at twice")
    commands.student("--distill", "kd,at", "-b", 3, *argv).refused("--weight")
    commands.student("--distill", "kd,at", "--weight", "vid=3", *argv).refused("vid", "at")
    commands.student("--distill", "kd", "--trials", 2, "--trial", "a", *argv).refused("--trials")
    assert not (tmp_path / "students").exists()


def test_weights_by_name_reach_their_lane():
    ((kd, at),) = parse_students(["--distill", "kd,at", "--weight", "at=7", "cls=0.5"], teacher=False)
    assert (kd.config.cls, at.config.cls, at.config.beta, kd.config.beta) == (0.5, 0.5, 7.0, 0.0)
    ((both,),) = parse_students(["--distill", "kd+attention", "--weight", "attention=7"], teacher=False)
    assert dict((m.name, c.beta) for m, c in both.config.members) == {"kd": 0.0, "at": 7.0}


# ---- the cache itself


class Counting(TeacherSource):
    """A live teacher that counts the samples it is asked for."""

    spec = dataclasses.replace(cnn(4), mean=None, std=None)
    samples = 0

    def features(self, batch, taps):
        self.samples += len(batch)
        pixels = batch.inputs["image"].flatten(1)
        return {"logits": pixels[:, :5] * 2, **({"pooled": pixels[:, :D] * 3} if "pooled" in taps else {})}


N, Q, K, D = 12, 6, 5, 3


def cache(
    folder,
    live=None,
    teacher="t",
    rebuild=False,
    pooled=False,
    fold=False,
    device="cpu",
    where="auto",
    network="",
    dtype=torch.float32,
):
    key = cache_key(teacher, "d", Counting.spec, None, fold, network)
    live = Counting() if live is None else live
    width = (D, torch.float32) if pooled else None
    cfg = CacheConfig(teacher_cache=str(folder), cache_device=where)
    return CachedTeacher(live, cfg, key, CacheLayout(N, Q, K, dtype, width), torch.device(device), rebuild)


def batch_of(index, crop):
    index, crop = torch.tensor(index), torch.tensor(crop)
    image = torch.stack([torch.full((1, 4, 4), float(i * Q + c)) for i, c in zip(index, crop, strict=True)])
    return Batch({"image": image}, index % K, index, crop=crop, view_id=index * Q + crop)


def test_only_views_not_seen_are_computed(tmp_path):
    live = Counting()
    teacher = cache(tmp_path / "c", live)
    batch = batch_of([0, 1, 2], [0, 1, 5])
    want = Counting().features(batch, ())["logits"]
    for _ in range(2):
        assert torch.equal(teacher.features(batch, ())["logits"], want)
    assert live.samples == 3
    teacher.features(batch_of([0, 1, 2], [0, 2, 5]), ())
    assert live.samples == 4
    other = Counting()
    assert torch.equal(cache(tmp_path / "c", other).features(batch, ())["logits"], want) and other.samples == 0


def test_changed_pixels_go_to_the_teacher(tmp_path):
    live = Counting()
    batch = batch_of([0], [0])
    cache(tmp_path / "c", live).features(batch.with_inputs(batch.inputs), ())
    assert live.samples == 1 and not cache(tmp_path / "c").stores["logits"].sums.any()


def test_another_teacher_is_refused_and_rebuilt_on_request(tmp_path):
    cache(tmp_path / "c").features(batch_of([3], [3]), ())
    with pytest.raises(UserError, match="teacher: t in the cache, u in this run"):
        cache(tmp_path / "c", teacher="u")
    assert not cache(tmp_path / "c", teacher="u", rebuild=True).stores["logits"].sums.any()


def test_pooled_features_join_a_cache_of_logits(tmp_path):
    batch, want = batch_of([0, 1, 2], [0, 1, 5]), Counting()
    both = want.features(batch, ("pooled",))
    cache(tmp_path / "c").features(batch, ())
    live = Counting()
    teacher = cache(tmp_path / "c", live, pooled=True)
    assert torch.equal(teacher.features(batch, ())["logits"], both["logits"]) and live.samples == 0
    for _ in range(2):
        answer = teacher.features(batch, ("pooled",))
        assert answer.keys() == both.keys() and all(torch.equal(answer[k], both[k]) for k in both)
    assert live.samples == 3 and teacher.end_epoch() == {"cache_hit_rate": 6 / 9}
    teacher.features(batch_of([0, 4], [0, 1]), ("pooled",))
    assert live.samples == 4
    path = tmp_path / "c" / "pooled.bin"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    later, late = Counting(), batch_of([0, 11], [0, 5])
    again = cache(tmp_path / "c", later, pooled=True)
    assert torch.equal(again.features(late, ("pooled",))["pooled"], want.features(late, ("pooled",))["pooled"])
    assert later.samples == 1
    again.features(batch, ("stage3",))
    assert later.samples == 4, "taps that are not kept come from the teacher"


def test_a_folded_teacher_has_a_cache_of_its_own(tmp_path):
    cache(tmp_path / "c")
    with pytest.raises(UserError, match="folded: False in the cache, True in this run"):
        cache(tmp_path / "c", fold=True)
    record = json.loads((tmp_path / "c" / "key.json").read_text())
    (tmp_path / "c" / "key.json").write_text(
        json.dumps({k: v for k, v in record.items() if k not in ("folded", "checksum")})
    )
    cache(tmp_path / "c")  # written before there was a choice


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["gpu", "disk"])
def test_a_cache_read_by_a_gpu(tmp_path, where):
    def moved(batch):
        image = {"image": batch.inputs["image"].cuda()}
        fields = {"target": batch.target.cuda(), "index": batch.index.cuda(), "crop": batch.crop.cuda()}
        return dataclasses.replace(batch, inputs=image, **fields)

    first, second = moved(batch_of([0, 1, 2], [0, 1, 5])), moved(batch_of([0, 1, 3], [0, 2, 5]))
    for samples in (5, 0):
        live = Counting()
        teacher = cache(tmp_path / "c", live, pooled=True, device="cuda", where=where)
        for batch in (first, second):
            want, got = Counting().features(batch, ("pooled",)), teacher.features(batch, ("pooled",))
            assert all(torch.equal(got[k], want[k]) for k in want)
            teacher.end_epoch()
        assert live.samples == samples


@pytest.mark.parametrize("name", ["logits.bin", "logits_sums.bin"])
def test_what_a_crash_cut_off_is_computed_again(tmp_path, name):
    folder, live = tmp_path / "c", Counting()
    batch = batch_of([0, 11], [0, 5])
    cache(folder).features(batch, ())
    path = folder / name
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    want = Counting().features(batch, ())["logits"]
    assert torch.equal(cache(folder, live).features(batch, ())["logits"], want)
    assert live.samples == 1


def whole_cache(folder):
    """All views, in batches of one sample."""
    teacher, batches = cache(folder, pooled=True), [batch_of([i] * Q, range(Q)) for i in range(N)]
    for batch in batches:
        teacher.features(batch, ("pooled",))
    return batches


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["logits.bin", "logits_sums.bin", "pooled.bin", "pooled_sums.bin"])
def test_damaged_rows_are_noticed_and_computed_again(tmp_path, caplog, name):
    """One bit, a block of zeros, a half, or all of a file; afterwards the cache is whole again."""
    batches, path, rng = whole_cache(tmp_path), tmp_path / name, random.Random(0)
    whole = path.read_bytes()

    def again(samples, words=""):
        caplog.clear()
        live = Counting()
        teacher = cache(tmp_path, live, pooled=True)
        for batch in batches:
            want = Counting().features(batch, ("pooled",))
            got = teacher.features(batch, ("pooled",))
            assert all(torch.equal(got[k], want[k]) for k in want)
        assert live.samples == samples
        assert [words in r.getMessage() for r in caplog.records] == [True] * (samples > 0), caplog.text
        assert path.read_bytes() == whole

    with caplog.at_level("INFO"):
        again(0)
        for _ in range(20):
            flip(path, rng.randrange(8 * len(whole)))
            again(1, "does not match its checksums: these rows are computed again")
        row = len(whole) // (N * Q)
        path.write_bytes(whole[: 5 * row] + bytes(7 * row) + whole[12 * row :])
        if "sums" not in name:  # a checksum of zero says that there is no row, which costs a forward pass
            again(7, "does not match")
        path.write_bytes(whole[: len(whole) // 2])
        again(N * Q // 2, "is cut off or missing")
        path.unlink()
        again(N * Q - ("sums" not in name), "is cut off or missing")  # the first row is zeros anyway
        if "sums" not in name:
            path.write_bytes(whole[row:] + whole[:row])  # every row at the place of another
            again(N * Q, "does not match")


def test_a_cache_of_an_older_version_gets_checksums(tmp_path, caplog):
    (batch, *_) = whole_cache(tmp_path)
    marks = np.ones(N * Q, np.uint8)
    marks[0] = 0
    for name in ("logits", "pooled"):
        (tmp_path / f"{name}_sums.bin").unlink()
        marks.tofile(tmp_path / ("filled.bin" if name == "logits" else "pooled_filled.bin"))
    for samples, lines in ((1, 2), (0, 0)):
        live = Counting()
        with caplog.at_level("INFO"):
            teacher = cache(tmp_path, live, pooled=True)
        assert [f"{N * Q - 1} rows are used and get checksums" in r.getMessage() for r in caplog.records] == [
            True
        ] * lines
        teacher.features(batch, ("pooled",))
        assert live.samples == samples and not list(tmp_path.glob("*filled.bin"))
        caplog.clear()


def test_what_a_kill_left_unfinished_is_computed_again(tmp_path, monkeypatch):
    folder, live, batch = tmp_path / "c", Counting(), batch_of([0, 11], [0, 5])
    cache(folder).features(batch, ())
    with open(folder / "logits.bin", "r+b") as file:
        file.truncate(N * Q * K * 4 // 2)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(under_test.Store, "_map", killed)  # the files have their full size again, and nothing is read
        cache(folder)
    want = Counting().features(batch, ())["logits"]
    assert torch.equal(cache(folder, live).features(batch, ())["logits"], want)
    assert live.samples == 1
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".key.json.1.tmp").write_text("{")  # killed while the key was written
    cache(tmp_path / "d")


def test_processes_open_a_cache_one_after_the_other(tmp_path):
    opened = []
    other = threading.Thread(target=lambda: opened.append(cache(tmp_path / "c", teacher="u")))
    (tmp_path / "c").mkdir()
    with locked(tmp_path / "c"):
        other.start()
        other.join(0.2)
        assert not opened
    other.join(10)
    assert opened
    with pytest.raises(UserError, match="teacher: u in the cache, t in this run"):
        cache(tmp_path / "c")


def test_one_file_read_as_two_networks_has_two_caches(tmp_path):
    cache(tmp_path / "c", network="mobilenetV2")
    with pytest.raises(UserError, match="network: mobilenetV2 in the cache, mobilenetV2_dpcd in this run"):
        cache(tmp_path / "c", network="mobilenetV2_dpcd")
    with pytest.raises(UserError, match="dtype: float32 in the cache, bfloat16 in this run"):
        cache(tmp_path / "c", network="mobilenetV2", dtype=torch.bfloat16)
    record = json.loads((tmp_path / "c" / "key.json").read_text())
    older = {k: v for k, v in record.items() if k not in ("network", "dtype", "checksum")}
    (tmp_path / "c" / "key.json").write_text(json.dumps(older))
    cache(tmp_path / "c", network="mobilenetV2")


def test_rows_are_kept_as_the_teacher_answers():
    class Exact(torch.nn.Module):
        """Ends in float32, whatever autocast makes of its layers."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).float() / 3

    spec = dataclasses.replace(cnn(4), taps={}, feats=())
    for wrap, dtype in ((torch.nn.Sequential, torch.bfloat16), (Exact, torch.float32)):
        net = TappedNet(wrap(spec(num_classes=K)), spec)
        found = feature_widths(LiveTeacher(net, torch.bfloat16), ToyData(), torch.device("cpu"), ())
        assert found == (K, dtype, None)


def test_an_accelerator_meets_few_sizes_of_a_batch(tmp_path):
    live = Counting()
    teacher = cache(tmp_path / "c", live)
    teacher.in_quarters = True
    for seen, asked in ((1, 2), (5, 6), (8, 8)):
        teacher.features(batch_of(range(8), [0] * 8), ())
        live.samples = 0
        fresh = batch_of(range(8), [seen % Q] * seen + [0] * (8 - seen))
        assert torch.equal(teacher.features(fresh, ())["logits"], Counting().features(fresh, ())["logits"])
        assert live.samples == asked
    assert teacher.hits == 7 + 8 + 3 + 8, "what is asked for beside the missing counts as known"


def test_no_room_names_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match=f"needs {N * Q * (K * 4 + 4)} bytes, 10 are free"):
        cache(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_files_that_are_not_written_yet_need_room_too(tmp_path, monkeypatch):
    cache(tmp_path / "c")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match="bytes, 10 are free"):
        cache(tmp_path / "c")
    assert (tmp_path / "c" / "key.json").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("mine")
    for rebuild in (False, True):
        with pytest.raises(UserError, match="not a teacher cache"):
            cache(tmp_path / "c", rebuild=rebuild)
    assert (tmp_path / "c" / "thesis.tex").read_text() == "mine"


def test_students_of_a_process_share_what_decodes_the_test_set(commands, tmp_path):
    """In a process of its own, whose log a session may set up."""
    argv = ["--dataset", "digits", "--image_size", "8", "--tb_backend", "none"]
    argv += ["--distill", "vanilla", "--model_s", "resnet8,resnet14"]
    script = (
        "import train_student\n"
        "from helper import session\n"
        "loaders = lambda entered: {id(lane.run.test_loader) for lane, _ in entered}\n"
        "session.fit = lambda entered, *_: print('loaders', len(entered), len(loaders(entered)))\n"
        f"train_student.main({[*argv, '--save_root', str(tmp_path)]})\n"
    )
    done = subprocess.run([commands.python, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "loaders 2 1" in done.stdout
