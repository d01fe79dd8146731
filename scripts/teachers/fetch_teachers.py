#!/usr/bin/env python3
"""Fetch public teachers: bash scripts/teachers/fetch_teachers.sh [NAME ...] [--list] [--save_root ./save]

Each is saved as SAVE_ROOT/teachers/models/NAME_vanilla/NAME_best.pth. The sources of scripts/teachers/teachers.toml are
tried in order. Downloads are resumed, retried, and compared with the publisher's checksum, or, if there is none, with
that of the first download (SAVE_ROOT/teachers/fetched.json). NAME@DATA fetches the weights for one data set.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_save, atomic_write, make_folder, read_config, read_json, remember
from core.option import checked, positive, whole
from core.packages import needed
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.networks.checkpoint import num_classes_of, read_checkpoint
from helper.options.quick import normalised
from helper.runs.folder import file_name
from models import model_dict, model_in

SOURCES = Path(__file__).with_name("teachers.toml")
TABLES = ("resnet32x4", "vgg13", "wrn_40_2", "resnet56", "resnet110", "ResNet50")  # the teachers of the tables
KINDS = ("file", "tar", "torchvision", "timm", "manual")
LARGEST = 8 * 2**30  # bytes of a file of weights, and of a member of an archive
LONGEST = 6 * 3600  # seconds of one attempt


class Unreachable(Exception):  # noqa: N818 (reported, and the next source is tried)
    """A source did not deliver. The message says what came back."""


def require_room(url: str, partial: Path, size: int) -> None:
    """Unreachable for more bytes than weights take, or than the disk has; nothing of them stays."""
    left = shutil.disk_usage(partial.parent).free
    if size > LARGEST or (not partial.exists() and size > left):
        partial.unlink(missing_ok=True)
        limit = f"the limit of {LARGEST}" if size > LARGEST else f"{left} free ones of the disk"
        raise Unreachable(f"{url} has at least {size} bytes, more than {limit}")


def require_web(url: str) -> None:
    if not re.match("https?://", url, re.IGNORECASE):
        raise Unreachable(f"{url} is no address of the web: it must begin with https:// or http://")


def fill(partial: Path, url: str, timeout: float) -> None:
    """Bring the rest of the file behind `url`: what an earlier attempt brought stays, and is continued.

    timeout: seconds without a byte after which the attempt ends. Raises Unreachable, or an error of requests after
    which another attempt may help.
    """
    import requests
    from tqdm import tqdm

    began = time.monotonic()
    done = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})  # lengths are of the file
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
        for hop in (*response.history, response):
            require_web(hop.url)
        if response.status_code == 416 and done:  # nothing is left to send, or the file has changed: start again
            partial.unlink()
            return fill(partial, url, timeout)
        if 400 <= response.status_code < 500:
            raise Unreachable(f"{url} answers {response.status_code}")
        response.raise_for_status()
        if response.status_code != 206:
            done = 0
        length = response.headers.get("content-length")
        wanted = None if length is None or not length.isdecimal() else done + int(length)
        require_room(url, partial, wanted or 0)
        with (
            open(partial, "ab" if done else "wb") as file,
            tqdm(total=wanted, initial=done, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
        ):
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
                require_room(url, partial, file.tell())
                if time.monotonic() - began > LONGEST:
                    raise Unreachable(f"{url} has not ended after {LONGEST / 3600:g} hours")
    size = partial.stat().st_size
    if wanted is not None and size < wanted:
        raise requests.exceptions.ConnectionError(f"the server sent {size} of {wanted} bytes")


def download(url: str, folder: Path, known: str | None, retries: int, timeout: float) -> Path:
    """The file behind `url`, in `folder`. known: its SHA-256 (None: unknown). Raises Unreachable."""
    errors = needed("requests", "fetching teachers").exceptions
    require_web(url)
    name = url.rsplit("/", 1)[-1]
    if not name or ".." in name or "\\" in name or not name.isprintable():
        raise Unreachable(f"{url} does not end in the name of a file")
    make_folder(folder)
    path, partial = folder / name, folder / f"{name}.part"
    if path.exists() and known in (None, sha256(path)):
        return path
    for attempt in range(retries + 1):
        time.sleep(min(attempt, 10))
        try:
            fill(partial, url, timeout)
            if known in (None, sha256(partial)):
                return partial.replace(path)
            partial.unlink()
            reason = f"{url} is not the file it was: its SHA-256 is another than the {known[:16]}... of fetched.json"
        except errors.InvalidSchema as error:  # of a redirect
            raise Unreachable(f"{url} leads to what is no address of the web: {_short(error)}") from error
        except errors.Timeout:
            reason = f"{url} sent nothing for {timeout:g} s"
        except errors.ChunkedEncodingError:
            reason = f"{url}: the connection broke after {partial.stat().st_size} bytes"
        except errors.RequestException as error:
            reason = f"{url}: {_short(error)}"
        except OSError as error:  # after those of requests, which are OSErrors, too
            raise UserError(f"cannot store {url} as {partial}: {error.strerror or error}") from error
    raise Unreachable(reason)


def _short(error: Exception) -> str:
    return re.sub(r"\(Caused by.*", "", str(error)).split("\n")[0][:160].strip()


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_entry(entry: object) -> bool:
    """Whether Memory may have written it."""
    if not isinstance(entry, dict):
        return False
    filled = {"sha256": "", **entry}
    return all(isinstance(filled.get(k), kind) for k, kind in (("tried", str), ("reachable", bool), ("sha256", str)))


class Memory:
    """SAVE_ROOT/teachers/fetched.json: address -> when it was last tried, whether it delivered, SHA-256 once seen."""

    def __init__(self, root: Path):
        self.path = root / "teachers" / "fetched.json"
        self.known: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.known = read_json(self.path, {}, "delete it, and the checksums in it are lost")
            if odd := next((url for url, entry in self.known.items() if not is_entry(entry)), None):
                raise UserError(f"{self.path} is damaged (its {odd} is no entry): delete it")

    def checksum(self, url: str) -> str | None:
        return self.known.get(url, {}).get("sha256")

    def note(self, url: str, reachable: bool, checksum: str | None = None) -> None:
        today = datetime.date.today().isoformat()
        entry = self.known.get(url, {}) | {"tried": today, "reachable": reachable}
        self.known[url] = entry | ({"sha256": checksum} if checksum else {})
        make_folder(self.path.parent)
        remember(self.known, self.path)

    def describe(self, url: str) -> str | None:
        entry = self.known.get(url)
        return None if entry is None else f"{'reachable' if entry['reachable'] else 'not reachable'}, {entry['tried']}"


def classes_in(path: Path, name: str) -> int:
    """How many classes the weights in a file tell apart, read as the network `name`. UserError: they are of another."""
    state = read_checkpoint(path).state
    spec = model_in(name.partition("@")[0], state)
    return num_classes_of(state if spec.published.adapt is None else spec.published.adapt(state), spec)


def publisher_prefix(url: str) -> str | None:
    """The first digits of the SHA-256 that torchvision and OpenMMLab put into file names."""
    found = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    return found[1] if found else None


class Fetcher:
    def __init__(self, root: Path, sources: Sequence[Mapping[str, Any]], retries: int, timeout: float):
        self.root, self.sources, self.retries, self.timeout = root, sources, retries, timeout
        self.memory = Memory(root)

    def place(self, name: str) -> Path:
        short = file_name(name.partition("@")[0])
        return self.root / "teachers" / "models" / f"{short}_vanilla" / f"{short}_best.pth"

    def sources_of(self, name: str) -> list[tuple[Mapping[str, Any], str]]:
        """Every source of `name`, with its own name of the network: ResNet34@imagenet may stand for ResNet34."""
        found = []
        for source in self.sources:
            plain, _, dataset = name.partition("@")
            known = [n for n in (name, plain) if n in source["networks"]]
            if known and (known[0] == name or source.get("dataset") == dataset):
                found.append((source, known[0]))
            elif source["kind"] == "timm" and name.startswith("timm:"):
                found.append((source, name))
        return found

    def fetch(self, name: str) -> str:
        """What happened, in one line. Raises UserError where no source delivers or another teacher is in place."""
        place, sources = self.place(name), self.sources_of(name)
        if place.exists():
            self.refuse_another(name, place, [s["classes"] for s, _ in sources if "classes" in s])
            return f"{name}: already at {place}"
        if place.parent.is_symlink() and not place.parent.exists():
            raise UserError(f"{place.parent} is a broken link: remove it first")
        reasons, manual = [], []
        for source, known in sources:
            if source["kind"] == "manual":
                manual.append(
                    f"{source['steps']} from {address(source, known)} ({source['what']}), and put it at {place}"
                )
                continue
            try:
                getattr(self, f"from_{source['kind']}")(source, known, place)
            except Unreachable as error:
                reasons.append(str(error))
                continue
            return f"{name}: from {source['key']}, at {place}"
        if not reasons and not manual:
            every = sorted({n for s in self.sources for n in s["networks"]})
            raise UserError(f"no public source of {name} is known; those known are of {', '.join(every)}, timm:NAME")
        ways = "".join(f"; by hand: {step}" for step in manual)
        raise UserError(
            f"{name}: {'; '.join(reasons) or 'no direct address'}{ways}; or train it: "
            "scripts/teachers/train_teachers.sh"
        )

    def refuse_another(self, name: str, place: Path, classes: Sequence[int]) -> None:
        """UserError if what lies at `place` has none of these numbers of classes: two data sets may share it."""
        if not classes or name.partition("@")[0] not in model_dict:
            return
        way_out = "move it away, or choose another --save_root"
        try:
            found = classes_in(place, name)
        except UserError as error:
            raise UserError(f"{name}: {place} holds something else ({error}): {way_out}") from error
        if found not in classes:
            raise UserError(f"{name}: {place} holds a network of {found} classes, this one has {classes[0]}: {way_out}")

    @contextmanager
    def delivered(self, url: str, folder: Path) -> Iterator[Path]:
        """The file behind `url`, which the block puts in place. Its checksum is remembered once that has succeeded.

        A file whose publisher gives no checksum is trusted the first time it brings weights. What brings none (the page
        of a hotel network, say) is deleted, and nothing is learnt from it.
        """
        known, answered = self.memory.checksum(url), False
        try:
            path = download(url, folder, known, self.retries, self.timeout)
            found, prefix = sha256(path), publisher_prefix(url)
            try:
                if prefix and not found.startswith(prefix):
                    raise Unreachable(
                        f"{url} is damaged: its SHA-256 begins with {found[:8]}, the publisher says {prefix}"
                    )
                answered = known is not None
                yield path
            except Unreachable:
                if not answered:
                    path.unlink(missing_ok=True)
                raise
        except Unreachable:
            self.memory.note(url, reachable=answered)
            raise
        self.memory.note(url, reachable=True, checksum=found)

    @property
    def store(self) -> Path:
        return self.root / "teachers" / "downloads"

    def put(self, path: Path, source: Mapping[str, Any], name: str, place: Path) -> None:
        url = address(source, name)
        try:
            read_checkpoint(path)  # weights, and nothing that could run code
            if "classes" in source and (found := classes_in(path, name)) != source["classes"]:
                raise UserError(f"{found} classes instead of {source['classes']}")
        except UserError as error:
            path.unlink()
            raise Unreachable(f"{url} delivers no weights of {name}: {error}") from error
        make_folder(place.parent)
        atomic_write(path.read_bytes(), place)

    def from_file(self, source: Mapping[str, Any], name: str, place: Path) -> None:
        with self.delivered(address(source, name), self.store / source["key"] / file_name(name)) as path:
            self.put(path, source, name, place)
        path.unlink(missing_ok=True)

    from_torchvision = from_file

    def from_tar(self, source: Mapping[str, Any], name: str, place: Path) -> None:
        """One archive for several networks; it stays in the store for the others."""
        url, wanted = source["url"], source["networks"][name]
        with self.delivered(url, self.store / source["key"]) as path:
            member = path.with_name("member.pth")
            try:
                with tarfile.open(path) as archive:
                    found = find_member(archive, wanted)
                    if found is None:
                        raise Unreachable(f"{url} holds no {wanted}")
                    with archive.extractfile(found) as packed, member.open("wb") as file:  # type: ignore[union-attr]
                        shutil.copyfileobj(packed, file)
                self.put(member, source, name, place)
            except (tarfile.TarError, EOFError) as error:
                raise Unreachable(f"{url} is no tar archive ({_short(error)})") from error
            finally:
                member.unlink(missing_ok=True)

    def from_timm(self, source: Mapping[str, Any], name: str, place: Path) -> None:
        timm = needed("timm", name)
        try:
            network = timm.create_model(name.removeprefix("timm:"), pretrained=True)
        except Exception as error:  # the hub client raises almost any exception
            self.memory.note(name, reachable=False)
            raise Unreachable(f"timm cannot bring {name}: {_short(error)}") from error
        make_folder(place.parent)
        atomic_save({"model": network.state_dict(), "meta": {"arch": name}}, place)
        self.memory.note(name, reachable=True)


def find_member(archive: tarfile.TarFile, ending: str) -> tarfile.TarInfo | None:
    """The first file whose name ends so. Unreachable where the files, by their headers, are larger than weights are."""
    size = 0
    for member in archive:
        size += member.size
        if size > LARGEST:
            raise Unreachable(f"the archive expands to more than {LARGEST} bytes")
        if member.isfile() and member.name.endswith(ending):
            return member
    return None


def read_sources(path: Path) -> list[dict[str, Any]]:
    """UserError names what is wrong with the list."""
    found = read_config(path).get("source")
    if not isinstance(found, list) or not found or not all(isinstance(source, dict) for source in found):
        raise UserError(f"{path} lists no sources: expected tables [[source]], as in {SOURCES.name}")
    for number, source in enumerate(found, 1):
        if wrong := wrong_source(source):
            raise UserError(f"{path}, source {number}: {wrong}, as in {SOURCES.name}")
    return found


def wrong_source(source: Mapping[str, Any]) -> str:
    """What is wrong with an entry, "" if nothing."""
    kind = source.get("kind")
    more = {"manual": ("steps",), "tar": ("url",)}
    for name in ("key", "what", "tried", *more.get(str(kind), ())):
        if not isinstance(source.get(name), str):
            return f"{name} must be a text"
    if not re.fullmatch(r"\w[\w.-]*", source["key"]) or ".." in source["key"]:
        return f"the key {source['key']!r} becomes the name of a folder and must be a plain word"
    if kind not in KINDS:
        return f"the kind {kind!r} must be one of {', '.join(KINDS)}"
    networks = source.get("networks")
    if not isinstance(networks, dict) or not all(isinstance(value, str) for value in networks.values()):
        return "networks must be a table of texts"
    if not isinstance(source.get("classes", 1), int):
        return "classes must be a number"
    return ""


def address(source: Mapping[str, Any], name: str) -> str:
    """Where `source` has the network `name`, as Memory knows it."""
    if source["kind"] == "torchvision":
        from torchvision.models import get_weight

        return get_weight(source["networks"][name]).url
    if source["kind"] == "timm":
        return name
    return source["url"] if "url" in source else source["networks"][name]


def listing(sources: Sequence[Mapping[str, Any]], memory: Memory) -> str:
    lines = []
    for source in sources:
        lines.append(f"{source['key']} ({source['kind']}): {source['what']}")
        names = list(source["networks"])
        if source["kind"] == "timm":
            names += [tried for tried in memory.known if tried.startswith("timm:")]
        for name in names:
            url = address(source, name)
            state = memory.describe(url) or f"tried: {source['tried']}"
            lines.append(f"  {name:24s} {state}  {url if url != name else ''}".rstrip())
        if not names:
            lines.append(f"  tried: {source['tried']}")
        if "steps" in source:
            lines.append(f"  by hand: {source['steps']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", help="networks, or timm:NAME (default: the teachers of the tables)")
    add("--save_root", type=Path, default=Path("./save"), help="root folder of runs", metavar="FOLDER")
    add("--list", action="store_true", help="list every source, and whether it was reachable when last tried")
    add(
        "--sources",
        type=Path,
        default=SOURCES,
        help="another list of sources (default scripts/teachers/teachers.toml)",
        metavar="FILE",
    )
    add("--retries", **whole(0, 100), default=4, help="further attempts per address")
    add("--timeout", type=float, action=checked(positive), default=30, help="seconds without a byte before giving up")
    args = parser.parse_args(normalised(argv))
    sources = read_sources(args.sources)
    fetcher = Fetcher(args.save_root, sources, args.retries, args.timeout)
    if args.list:
        say(listing(sources, fetcher.memory))
        return 0
    failed = 0
    for name in args.names or TABLES:
        try:
            say(fetcher.fetch(name))
        except UserError as error:
            failed += 1
            print(error, file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    run_script(main)
