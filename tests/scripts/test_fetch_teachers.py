"""Fetching teachers, against a server on this machine that breaks off, changes its files, sends nothing or is slow."""

import hashlib
import http.server
import io
import re
import shlex
import sys
import tarfile
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from helper.networks.checkpoint import read_checkpoint
from helper.options.parse import parse
from helper.tables.published import read_table, tables
from models import model_dict
from scripts.teachers.fetch_teachers import (
    SOURCES,
    TABLES,
    Fetcher,
    Memory,
    address,
    main,
    publisher_prefix,
    read_sources,
)
from tests.support.model_contract import zeros

pytest.importorskip("requests", reason="needs requests, of requirements-extra.txt")
ROOT = Path(__file__).resolve().parents[2]
DRIVE, OPENMMLAB = (
    "https://drive.google.com/file/d/{}/view?usp=sharing",
    "https://download.openmmlab.com/mmaction/v1.0/{}.pth",
)
ARCHIVE = "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"
SERVER = "http://shape2prog.csail.mit.edu/repo/{}_vanilla/ckpt_epoch_240.pth"
FOLDER = "https://drive.google.com/drive/folders/1j7b8TmftKIRC7ChUwAqVWPIocSiacvP4?usp=sharing"
TSM = "recognition/tsm/tsm_imagenet-pretrained-r50_8xb16-1x1x8-100e_kinetics400-rgb"
TSN = "recognition/tsn/tsn_imagenet-pretrained-swin-transformer_32xb8-1x1x8-50e_kinetics400-rgb"
KD = "projects/knowledge_distillation/kd_logits_"
LINKS = {  # what the publications link to, by hand; torchvision's addresses are the package's
    **{name: [ARCHIVE, SERVER.format(name)] for name in ("resnet56", "resnet110", "vgg13", "wrn_40_2", "ResNet50")},
    "resnet32x4": [ARCHIVE, SERVER.format("resnet32x4"), FOLDER],
    "ResNet50@imagenet": [FOLDER],
    "resnet34_imagenet_aux": map(
        DRIVE.format, ("1FojZDTafcQj4-vu9TKuq_ss36mbCp3UJ", "1LtZSKtAVr30xn8Yb3FIm-xd5HTsSAwX1")
    ),
    "resnet18_imagenet_aux": map(
        DRIVE.format, ("1jqoNEAkNgHpX6HS6nyWegMfHMisl2020", "1O5yM-3rJvsU6nrAqCncVMNSZ6HsJTKQN")
    ),
    "wrn_16_2_aux": ["https://pan.baidu.com/s/19TFpc0HVcJ1ucofyTOQe-g"],
    "tsm_resnet50": [OPENMMLAB.format(f"{TSM}/{TSM.rpartition('/')[2]}_20220831-a6db1e5d")],
    "tsn_swin_base": [OPENMMLAB.format(f"{TSN}/{TSN.rpartition('/')[2]}_20230530-428f0064")],
    "tsm_mobilenetv2": [
        OPENMMLAB.format(
            KD + "tsm-res50_tsm-mobilenetv2_8xb16_k400/kd_logits_tsm-res50_tsm-mobilenetv2_8xb16_k400_20230517-c3e8aa0d"
        )
    ],
    "tsn_resnet50": [
        OPENMMLAB.format(
            KD + "tsn-swin_tsn-r50_1x1x8_k400/kd_logits_tsn-swin_tsn-r50_1x1x8_k400_student_20230530-f938d404"
        )
    ],
}


class Server(http.server.ThreadingHTTPServer):
    """files: path -> bytes. breaks: path -> after how many bytes a connection ends, once. pause: seconds per 16 KiB."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.breaks, self.pause, self.stalled, self.asked = {}, {}, {}, set(), []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()  # how often it looks for its end

    def handle_error(self, *about):
        if not isinstance(sys.exception(), ConnectionError):  # of a client that hangs up
            super().handle_error(*about)

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, path = self.server, self.path
        first = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        server.asked.append((path, first))
        if path not in server.files:
            self.send_error(404)
            return
        body = server.files[path]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        end = server.breaks.pop(path, len(body))
        for k in range(first, end, 1 << 14):
            self.wfile.write(body[k : min(k + (1 << 14), end)])
            time.sleep(server.pause.get(path, 0))
        if path in server.stalled:
            time.sleep(5)
        self.close_connection = True


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def weights() -> bytes:
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save({"model": model_dict["resnet8"](num_classes=100).state_dict(), "best_acc": 59.0}, file)
    return file.getvalue()


@pytest.fixture
def fetch(tmp_path, capsys):
    """Runs the script on one source; returns (exit code, what it said, where the file would be)."""

    def fetch(url, *argv, kind="file", member="", name="resnet8", more=""):
        entry = (
            f'url = "{url}"\nnetworks = {{ {name} = "{member}" }}'
            if kind == "tar"
            else f'networks = {{ {name} = "{url}" }}'
        )
        (tmp_path / "s.toml").write_text(
            f'[[source]]\nkey = "here"\nkind = "{kind}"\nwhat = "w"\ntried = "never"\n{more}\n{entry}\n'
        )
        code = main(
            [name, "--save_root", str(tmp_path), "--sources", str(tmp_path / "s.toml"), "--retries", "1", *argv]
        )
        out, err = capsys.readouterr()
        assert "Traceback" not in err and len(err.strip().splitlines()) <= 1, err
        return code, out + err, tmp_path / "teachers/models" / f"{name}_vanilla" / f"{name}_best.pth"

    return fetch


def test_a_file_lands_where_the_students_command_looks(server, fetch, weights, tmp_path):
    server.files["/a.pth"] = weights
    code, said, place = fetch(server.address("/a.pth"))
    assert code == 0 and place.read_bytes() == weights and str(place) in said
    recorded = Memory(tmp_path).known[server.address("/a.pth")]
    assert recorded["sha256"] == hashlib.sha256(weights).hexdigest() and recorded["reachable"] is True
    assert "already at" in fetch(server.address("/a.pth"))[1] and len(server.asked) == 1
    assert main(["--list", "--save_root", str(tmp_path), "--sources", str(tmp_path / "s.toml")]) == 0


def test_what_broke_off_is_continued(server, fetch, weights):
    server.files["/a.pth"], server.breaks["/a.pth"] = weights, 100_000
    code, said, place = fetch(server.address("/a.pth"))
    assert code == 0 and place.read_bytes() == weights
    (_, began), (_, went_on) = server.asked  # one retry, and it asks for the rest alone
    assert began == 0 and 50_000 < went_on <= 100_000


def test_the_next_call_continues_too(server, fetch, weights):
    server.files["/a.pth"], server.breaks["/a.pth"] = weights, 100_000
    code, said, place = fetch(server.address("/a.pth"), "--retries", "0")
    assert code == 2 and not place.exists() and "resnet8" in said and "train_teachers" in said
    assert fetch(server.address("/a.pth"))[0] == 0 and server.asked[-1][1] > 50_000 and place.read_bytes() == weights


def test_another_file_than_the_first_is_refused(server, fetch, weights):
    server.files["/a.pth"] = weights
    _, _, place = fetch(server.address("/a.pth"))
    place.unlink()
    server.files["/a.pth"] = weights + b"x"
    code, said, _ = fetch(server.address("/a.pth"))
    assert code == 2 and "SHA-256" in said and not place.exists()


def test_the_publishers_checksum_counts(server, fetch, weights):
    right = f"/r-{hashlib.sha256(weights).hexdigest()[:8]}.pth"
    server.files |= {right: weights, "/r-00000000.pth": weights}
    code, said, place = fetch(server.address("/r-00000000.pth"))
    assert code == 2 and "publisher" in said and not place.exists()
    assert fetch(server.address(right))[0] == 0
    assert (
        publisher_prefix("https://x/resnet34-333f7ec4.pth") == "333f7ec4"
        and publisher_prefix("/ckpt_epoch_240.pth") is None
    )


@pytest.mark.parametrize("wrong", [b"<html>sign in first</html>", "cut", "of another data set"])
def test_what_is_no_weights_leaves_no_trace_in_the_way_of_the_true_file(server, fetch, weights, tmp_path, wrong):
    if wrong == "of another data set":
        file = io.BytesIO()
        torch.save(model_dict["resnet8"](num_classes=10).state_dict(), file)
        wrong = file.getvalue()
    server.files["/a.pth"] = weights[:50_000] if wrong == "cut" else wrong
    code, said, place = fetch(server.address("/a.pth"), more="classes = 100")
    assert code == 2 and "delivers no weights" in said and not place.exists()
    assert Memory(tmp_path).describe(server.address("/a.pth")).startswith("not reachable, ")
    server.files["/a.pth"] = weights
    assert fetch(server.address("/a.pth"), more="classes = 100")[0] == 0 and place.read_bytes() == weights


@pytest.mark.parametrize("wrong", ["page", "cut", "cut between members", "of other networks", "broken member"])
def test_an_archive_is_trusted_once_it_has_brought_weights(server, fetch, weights, wrong):
    good = packed({"a/first.pth": b"x" * 10_000, "a/resnet8.pth": weights})
    server.files["/t.tar"] = {
        "page": b"<html>sign in first</html>",
        "cut": good[:50_000],
        "cut between members": good[: 512 + 10_240],
        "of other networks": packed({"a/vgg8.pth": weights}),
        "broken member": packed({"a/resnet8.pth": weights[:50_000]}),
    }[wrong]
    code, _, place = fetch(server.address("/t.tar"), kind="tar", member="resnet8.pth")
    assert code == 2 and not place.exists()
    server.files["/t.tar"] = good
    code, said, place = fetch(server.address("/t.tar"), kind="tar", member="resnet8.pth")
    assert code == 0 and place.read_bytes() == weights, said


def test_a_teacher_of_another_data_set_is_not_already_there(fetch, tmp_path):
    _, _, place = fetch("http://127.0.0.1:1/a.pth", "--retries", "0")
    place.parent.mkdir(parents=True)
    torch.save(model_dict["resnet8"](num_classes=10).state_dict(), place)
    assert "already at" in fetch("http://127.0.0.1:1/a.pth")[1]  # a source that says nothing of classes
    code, said, _ = fetch("http://127.0.0.1:1/a.pth", more="classes = 100")
    assert code == 2 and "holds a network of 10 classes, this one has 100" in said
    place = tmp_path / "teachers/models/ResNet50_vanilla/ResNet50_best.pth"
    place.parent.mkdir(parents=True)

    def put(held, classes):
        torch.save(zeros(model_dict[held], classes), place)

    for held, asked, other in (("ResNet50", "ResNet50@imagenet", 100), ("ResNet50_cifar", "ResNet50", 1000)):
        put(held, other)
        assert main([asked, "--save_root", str(tmp_path)]) == 2
        put(held, 1100 - other)
        assert main([asked, "--save_root", str(tmp_path)]) == 0
    assert main(["ResNet50@imagenet", "--save_root", str(tmp_path)]) == 2


def test_a_file_that_is_gone(server, fetch, tmp_path):
    code, said, place = fetch(server.address("/gone.pth"), "--retries", "3")
    assert code == 2 and "404" in said and not place.exists()
    assert len(server.asked) == 1  # asking again would not help
    assert Memory(tmp_path).describe(server.address("/gone.pth")).startswith("not reachable, ")


def test_a_slow_server_and_one_that_stalls(server, fetch, weights):
    server.files["/slow.pth"], server.pause["/slow.pth"] = weights, 0.02
    assert fetch(server.address("/slow.pth"), "--timeout", "2", name="resnet14")[0] == 0
    server.files["/stall.pth"], server.breaks["/stall.pth"] = weights, 50_000
    server.stalled.add("/stall.pth")
    code, said, _ = fetch(server.address("/stall.pth"), "--timeout", "0.3", "--retries", "0")
    assert code == 2 and "/stall.pth" in said


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_an_archive_of_several(server, fetch, weights):
    server.files["/t.tar"] = packed(
        {"cifar/resnet8_vanilla/ckpt.pth": weights, "../resnet14_vanilla/ckpt.pth": b"outside"}
    )
    code, _, place = fetch(server.address("/t.tar"), kind="tar", member="resnet8_vanilla/ckpt.pth")
    assert code == 0 and place.read_bytes() == weights
    code, said, _ = fetch(server.address("/t.tar"), kind="tar", member="vgg8_vanilla/ckpt.pth", name="vgg8")
    assert code == 2 and "holds no vgg8_vanilla" in said and len(server.asked) == 1  # the archive is at hand
    server.files["/no.tar"] = b"no archive"
    assert "no tar archive" in fetch(server.address("/no.tar"), kind="tar", member="x", name="vgg13")[1]
    place.unlink()
    assert fetch(server.address("/t.tar"), kind="tar", member="resnet8_vanilla/ckpt.pth")[0] == 0


def test_weights_of_torchvision_and_timm(server, fetch, weights, monkeypatch, tmp_path):
    import torchvision.models

    timm = pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")

    path = f"/resnet8-{hashlib.sha256(weights).hexdigest()[:8]}.pth"
    server.files[path] = weights
    monkeypatch.setattr(torchvision.models, "get_weight", lambda name: types.SimpleNamespace(url=server.address(path)))
    code, _, place = fetch("A_Weights.V1", kind="torchvision")
    assert code == 0 and place.read_bytes() == weights
    assert re.search(
        r"resnet8 +reachable, \d{4}-.*" + re.escape(path), fetch("A_Weights.V1", "--list", kind="torchvision")[1]
    )

    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: torch.nn.Linear(2, 3))
    assert fetch("unused", kind="timm", name="resnet14")[0] == 0
    assert main(["timm:tiny", "--save_root", str(tmp_path), "--sources", str(tmp_path / "s.toml")]) == 0
    (file,) = tmp_path.glob("teachers/models/timm*_vanilla/*_best.pth")
    assert read_checkpoint(file).meta["arch"] == "timm:tiny"

    def unreachable(name, pretrained):
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    code, said, _ = fetch("unused", kind="timm", name="vgg8")
    assert code == 2 and "no route to the hub" in said
    listed = fetch("unused", "--list", kind="timm", name="vgg8")[1]
    assert re.search(r"vgg8 +not reachable, ", listed) and re.search(r"timm:tiny +reachable, ", listed)


def test_the_list_of_sources_is_complete(capsys, tmp_path):
    sources = read_sources(SOURCES)
    teachers = {t for name in tables() for t, _, _ in read_table(name).pairs}
    assert teachers == set(TABLES)
    for teacher in teachers:  # each by at least one direct address
        assert any(teacher in s["networks"] and s["kind"] in ("file", "tar") for s in sources)
    assert {"mdistiller", "repdistiller", "simkd", "torchvision", "timm", "hsakd", "dpcd", "openmmlab"} == {
        s["key"] for s in sources
    }
    offered = {(n, u) for s in sources for n in s["networks"] for u in address(s, n).split()}
    assert {(name, link) for name, links in LINKS.items() for link in links} <= offered
    for name in (n for n, _ in offered):
        assert name.partition("@")[0] in model_dict, f"nothing can be done with {name}"
    for source in sources:
        assert source["tried"] and (source["kind"] != "manual" or source["steps"])
    from torchvision.models import get_weight

    for weight in next(s for s in sources if s["key"] == "torchvision")["networks"].values():
        assert publisher_prefix(get_weight(weight).url)
    assert main(["--list", "--save_root", str(tmp_path)]) == 0 and "by hand" in capsys.readouterr().out
    assert main(["wrn_16_2_aux", "--save_root", str(tmp_path)]) == 2 and "qspu" in capsys.readouterr().err
    assert main(["resnet9000", "--save_root", str(tmp_path)]) == 2 and "no public source" in capsys.readouterr().err


def test_one_data_set_by_name(tmp_path):
    fetcher = Fetcher(tmp_path, read_sources(SOURCES), 0, 1.0)

    def keys(name):
        return [source["key"] for source, _ in fetcher.sources_of(name)]

    assert keys("ResNet50") == ["mdistiller", "repdistiller"] == keys("ResNet50@cifar100")
    assert keys("ResNet50@imagenet") == ["simkd", "torchvision"] and keys("resnet56@imagenet") == []
    assert keys("tsm_resnet50") == keys("tsm_resnet50@kinetics400") == ["openmmlab"] and keys("timm:tiny") == ["timm"]
    assert (
        fetcher.place("tsm_resnet50@kinetics400")
        == tmp_path / "teachers/models/tsm_resnet50_vanilla/tsm_resnet50_best.pth"
    )


def test_every_teacher_of_the_tables_is_trained():
    lines = (ROOT / "scripts/teachers/train_teachers.sh").read_text().splitlines()
    commands = [i for i, line in enumerate(lines) if line.startswith("python train_teacher.py ")]
    published = {t: a for name in tables() for t, a, _ in read_table(name).pairs}
    trained = {}
    for i in commands:
        settings = parse(shlex.split(lines[i])[2:], teacher=True)
        assert (
            settings.training.schedule.epochs,
            settings.training.loop.batch_size,
            settings.training.optim.weight_decay,
            settings.off_default(),
        ) == (
            240,
            64,
            5e-4,
            {},
        )
        trained[settings.model] = float(re.match(rf"# {settings.model}: ([\d.]+);", lines[i - 1])[1])
    assert trained == published
