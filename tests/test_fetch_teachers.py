"""Fetching teachers, against a server on this machine that breaks off, changes its files, sends nothing or is slow."""

import hashlib
import http.server
import io
import re
import shlex
import tarfile
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from helper.checkpoint import read_checkpoint
from helper.options import parse
from helper.published import read_table, tables
from models import model_dict
from scripts.fetch_teachers import SOURCES, TABLES, Memory, main, publisher_prefix, read_sources

pooch = pytest.importorskip("pooch", reason="needs pooch, of requirements-extra.txt")
ROOT = Path(__file__).parents[1]


class Server(http.server.ThreadingHTTPServer):
    """files: path -> bytes. breaks: path -> after how many bytes a connection ends, once. pause: seconds per 16 KiB."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.breaks, self.pause, self.stalled, self.asked = {}, {}, {}, set(), []
        threading.Thread(target=self.serve_forever, daemon=True).start()

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


@pytest.fixture(scope="module")
def weights() -> bytes:
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.save({"model": model_dict["resnet8"](num_classes=100).state_dict(), "best_acc": 59.0}, file)
    return file.getvalue()


@pytest.fixture
def fetch(server, tmp_path, capsys):
    """Runs the script on one source; returns (exit code, what it said, where the file would be)."""

    def fetch(url, *argv, kind="file", member="", name="resnet8"):
        entry = (
            f'url = "{url}"\nnetworks = {{ {name} = "{member}" }}'
            if kind == "tar"
            else f'networks = {{ {name} = "{url}" }}'
        )
        (tmp_path / "s.toml").write_text(
            f'[[source]]\nkey = "here"\nkind = "{kind}"\nwhat = "w"\ntried = "never"\n{entry}\n'
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


def test_a_file_that_is_cut_or_no_weights(server, fetch, weights):
    server.files |= {"/cut.pth": weights[:50_000], "/page.pth": b"<html>moved</html>"}
    for path in ("/cut.pth", "/page.pth"):
        code, said, place = fetch(server.address(path))
        assert code == 2 and "delivers no weights" in said and not place.exists()


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


def test_an_archive_of_several(server, fetch, weights):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (
            ("cifar/resnet8_vanilla/ckpt.pth", weights),
            ("../resnet14_vanilla/ckpt.pth", b"outside"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    server.files["/t.tar"] = file.getvalue()
    code, _, place = fetch(server.address("/t.tar"), kind="tar", member="resnet8_vanilla/ckpt.pth")
    assert code == 0 and place.read_bytes() == weights
    code, said, _ = fetch(server.address("/t.tar"), kind="tar", member="vgg8_vanilla/ckpt.pth", name="vgg8")
    assert code == 2 and "holds no vgg8_vanilla" in said and len(server.asked) == 1  # the archive is at hand
    server.files["/no.tar"] = b"no archive"
    assert "no tar archive" in fetch(server.address("/no.tar"), kind="tar", member="x", name="vgg13")[1]


def test_weights_of_torchvision_and_timm(server, fetch, weights, monkeypatch, tmp_path):
    import torchvision.models

    timm = pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")

    path = f"/resnet8-{hashlib.sha256(weights).hexdigest()[:8]}.pth"
    server.files[path] = weights
    monkeypatch.setattr(torchvision.models, "get_weight", lambda name: types.SimpleNamespace(url=server.address(path)))
    code, _, place = fetch("A_Weights.V1", kind="torchvision")
    assert code == 0 and place.read_bytes() == weights

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


def test_the_list_of_sources_is_complete(capsys, tmp_path):
    sources = read_sources(SOURCES)
    teachers = {t for name in tables() for t in read_table(name).teachers}
    assert teachers == set(TABLES)
    for teacher in teachers:  # each by at least one direct address
        assert any(teacher in s["networks"] and s["kind"] in ("file", "tar") for s in sources)
    assert {"mdistiller", "repdistiller", "simkd", "torchvision", "timm", "hsakd", "dpcd", "openmmlab"} == {
        s["key"] for s in sources
    }
    for source in sources:
        assert source["tried"] and (source["kind"] != "manual" or source["steps"])
    from torchvision.models import get_weight

    for weight in next(s for s in sources if s["key"] == "torchvision")["networks"].values():
        assert publisher_prefix(get_weight(weight).url)
    assert main(["--list", "--save_root", str(tmp_path)]) == 0 and "by hand" in capsys.readouterr().out
    assert main(["wrn_16_2_aux", "--save_root", str(tmp_path)]) == 2 and "qspu" in capsys.readouterr().err
    assert main(["resnet9000", "--save_root", str(tmp_path)]) == 2 and "no public source" in capsys.readouterr().err


def test_every_teacher_of_the_tables_is_trained():
    lines = (ROOT / "scripts/train_teachers.sh").read_text().splitlines()
    commands = [i for i, line in enumerate(lines) if line.startswith("python train_teacher.py ")]
    published = {t: a for name in tables() for t, a in read_table(name).teachers.items()}
    trained = {}
    for i in commands:
        settings = parse(shlex.split(lines[i])[2:], teacher=True)
        assert (settings.epochs, settings.batch_size, settings.weight_decay, settings.off_default()) == (
            240,
            64,
            5e-4,
            {},
        )
        trained[settings.model] = float(re.match(rf"# {settings.model}: ([\d.]+);", lines[i - 1])[1])
    assert trained == published
