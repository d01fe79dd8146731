"""What a download may not be: no address of the web, too large, a path out of its folder, a list that is none."""

import io
import json
import tarfile

import pytest

from core.protocols import UserError
from scripts.teachers import fetch_teachers
from scripts.teachers.fetch_teachers import read_sources
from tests.scripts.test_fetch_teachers import fetch, server, weights  # noqa: F401 (fixtures)

pytest.importorskip("requests", reason="needs requests, of requirements-extra.txt")


def left_behind(root):
    return [p for p in (root / "teachers").rglob("*") if p.is_file() and p.name != "fetched.json"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/hostname", "is no address of the web"),
        ("ftp://127.0.0.1/a.pth", "is no address of the web"),
        ("/etc/hostname", "is no address of the web"),
        ("http://[::1/a.pth", "is not a valid host"),
        ("http://127.0.0.1:9/..", "does not end in the name of a file"),
        ("http://127.0.0.1:9/a/", "does not end in the name of a file"),
    ],
)
def test_other_addresses_are_refused(fetch, tmp_path, url, words):  # noqa: F811
    code, said, place = fetch(url)
    assert code == 2 and words in said and not place.exists() and not left_behind(tmp_path)


def test_a_redirect_leaves_the_web_as_little(server, fetch, tmp_path, monkeypatch):  # noqa: F811
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", "file:///etc/hostname")
        handler.end_headers()

    monkeypatch.setattr("tests.scripts.test_fetch_teachers.Handler.do_GET", redirect)
    code, said, place = fetch(server.address("/a.pth"))
    assert code == 2 and "Traceback" not in said and not place.exists() and not left_behind(tmp_path)


def test_a_connection_that_breaks_is_said_plainly(server, fetch, weights, monkeypatch):  # noqa: F811
    def half(handler):
        assert handler.headers["Accept-Encoding"] == "identity"  # lengths and ranges are those of the file
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(weights)))
        handler.end_headers()
        handler.wfile.write(weights[: len(weights) // 2])
        handler.close_connection = True

    monkeypatch.setattr("tests.scripts.test_fetch_teachers.Handler.do_GET", half)
    code, said, _ = fetch(server.address("/a.pth"))
    assert code == 2 and "the connection broke after" in said and "IncompleteRead" not in said


def test_what_is_too_large_leaves_nothing(server, fetch, weights, tmp_path, monkeypatch):  # noqa: F811
    server.files["/a.pth"] = weights
    monkeypatch.setattr(fetch_teachers, "LARGEST", len(weights) - 1)
    code, said, place = fetch(server.address("/a.pth"))
    assert code == 2 and f"has at least {len(weights)} bytes, more than the limit" in said
    assert not place.exists() and not left_behind(tmp_path)
    monkeypatch.setattr(fetch_teachers, "LARGEST", 2**30)
    monkeypatch.setattr(fetch_teachers, "LONGEST", 0)
    assert "has not ended after 0 hours" in fetch(server.address("/a.pth"))[1]


def test_members_of_an_archive_are_measured_first(server, fetch, weights, tmp_path, monkeypatch):  # noqa: F811
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in (("zeros", bytes(1_000_000)), ("x/w.pth", weights)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    server.files["/a.tar"] = packed.getvalue()
    limit = max(len(packed.getvalue()) + 1, len(weights) + 1)
    monkeypatch.setattr(fetch_teachers, "LARGEST", limit)
    code, said, place = fetch(server.address("/a.tar"), kind="tar", member="x/w.pth")
    assert code == 2 and f"the archive expands to more than {limit} bytes" in said and not place.exists()
    monkeypatch.setattr(fetch_teachers, "LARGEST", 2**30)
    assert fetch(server.address("/a.tar"), kind="tar", member="x/w.pth")[0] == 0
    assert [p.name for p in left_behind(tmp_path) if "models" not in p.parts] == ["a.tar"]


GOOD = (
    '[[source]]\nkey = "here"\nkind = "file"\nwhat = "w"\ntried = "never"\nnetworks = { resnet8 = "https://x/a.pth" }\n'
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lists no sources"),
        ("source = 3", "lists no sources"),
        ("[[source", "is not a TOML file"),
        (GOOD.replace('"here"', '"../up"'), r"source 1: the key '../up' .* must be a plain word"),
        (GOOD.replace('"file"', '"magic"'), "the kind 'magic' must be one of file, tar"),
        (GOOD.replace('what = "w"\n', ""), "what must be a text"),
        (GOOD.replace('"https://x/a.pth"', "3"), "networks must be a table of texts"),
        (GOOD + "classes = 'ten'\n", "classes must be a number"),
    ],
)
def test_a_list_of_sources_is_checked_when_it_is_read(tmp_path, text, words):
    (tmp_path / "s.toml").write_text(GOOD)
    assert read_sources(tmp_path / "s.toml")[0]["key"] == "here"
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_sources(tmp_path / "s.toml")


def test_numbers_of_the_command_line():
    for argv in (["--retries", "-1"], ["--timeout", "nan"], ["--timeout", "0"]):
        with pytest.raises(UserError, match=argv[0]):
            fetch_teachers.main([*argv, "--list"])


def test_a_server_that_has_no_such_range_of_a_whole_file(server, fetch, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tests.scripts.test_fetch_teachers.Handler.do_GET", lambda handler: handler.send_error(416))
    code, said, place = fetch(server.address("/a.pth"))
    assert code == 2 and "answers 416" in said and not place.exists()


@pytest.mark.parametrize("occupied", ["downloads", "downloads/here/resnet8/a.pth.part", "models"])
def test_a_place_that_cannot_be_written_to(server, fetch, weights, tmp_path, occupied):  # noqa: F811
    server.files["/a.pth"], path = weights, tmp_path / "teachers" / occupied
    if path.suffix:
        path.mkdir(parents=True)  # a folder in place of a file
    else:
        path.parent.mkdir()
        path.touch()  # a file in place of a folder
    code, said, place = fetch(server.address("/a.pth"))
    assert code == 2 and said.startswith("cannot ") and "teachers" in said and not place.exists()


@pytest.mark.parametrize(
    "entry", [5, {}, {"tried": "x", "reachable": 1}, {"tried": "x", "reachable": True, "sha256": 5}]
)
def test_what_is_remembered_is_checked(tmp_path, entry):
    path = tmp_path / "teachers" / "fetched.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"http://a": entry}))
    with pytest.raises(UserError, match="is damaged"):
        fetch_teachers.Memory(tmp_path)
