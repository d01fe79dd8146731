"""Runs the scripts of the repository in forked processes that have the slow imports behind them.

A job is a line of JSON on standard input: script, argv, cwd, out, err (files), and hooks that make trouble at a chosen
moment. Two lines of JSON answer it, each with its number: the process id at once, the wait status when it has ended.

nursery.py SOCKET PYTHON: what a job starts with sys.executable, which is PYTHON to it, comes from here too. PYTHON is
interpreter_client.py, which asks at SOCKET.
"""

import contextlib
import errno
import fcntl
import functools
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("train_student", "helper.session", "helper.options.config_file", "helper.options.old_flags")
PROGRAMS += ("helper.options.plugins", "helper.deploy.as_trained", "helper.deploy.checkpoint_page")
PROGRAMS += ("helper.deploy.export", "helper.deploy.pictures", "helper.tables.table", "helper.tables.writers")
PACKAGES = ("av", "matplotlib.pyplot", "torchvision.transforms.v2")  # of some programs
ENVIRONMENT = {*os.environ}  # what imports set stays


def preload() -> None:
    """Import whatever a run imports on its way. Builds nothing: threads do not survive a fork."""
    import sklearn.datasets
    import sklearn.model_selection
    import torch._dynamo  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from torch.utils import checkpoint  # noqa: F401

    from dataset import dataset_dict
    from distiller_zoo import method_dict
    from models import model_dict

    for name in PROGRAMS:
        importlib.import_module(name)
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from tests.support.quick_export import shorten

    shorten()
    for registry in (dataset_dict, method_dict, model_dict):
        for name in registry:
            registry[name]
    sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)  # from text, each time
    sklearn.datasets.load_digits()
    sklearn.model_selection.train_test_split([0, 1])  # the first call of a process looks for plugins of other packages


def die_at_fsync(count: int, tear: bool) -> None:
    """SIGKILL at the count-th fsync, which every write that matters makes; tear: the file's end is lost before."""
    real, seen = os.fsync, 0

    def fsync(fd: int) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            if tear:
                with contextlib.suppress(OSError):  # a folder has no end to lose
                    os.ftruncate(fd, max(0, os.fstat(fd).st_size - 9))
            os.kill(os.getpid(), signal.SIGKILL)
        real(fd)

    os.fsync = fsync


def at_step(count: int, action) -> None:
    """Call action before the count-th training step."""
    from helper.training.step import DistillStep

    real, seen = DistillStep.__call__, 0

    def call(self, *args):
        nonlocal seen
        seen += 1
        if seen == count:
            action()
        return real(self, *args)

    DistillStep.__call__ = call


def signal_in_evaluation(number: int) -> None:
    """A signal to this process as the first evaluation begins."""
    import helper.training.run as loops

    real = loops.evaluate

    def evaluate(*args, **kwargs):
        os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    loops.evaluate = evaluate


def signal_group(where: list) -> None:
    """A group of its own, as launchers make one; a signal for the whole of it before a step, from outside."""
    os.setsid()
    count, number = where
    kill = ["kill", f"-{number}", "--", f"-{os.getpid()}"]
    at_step(count, lambda: subprocess.run(kill, start_new_session=True, check=True))


def planted_bug():
    raise KeyError("planted")


def as_ranks(count: int, hosts: int = 1) -> None:
    """Go on as `count` processes of one group, as if on so many hosts. Whoever forked them ends the others a while
    after one has failed, as torchrun does, and with its code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    local = count // hosts
    world = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": local, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            os.environ |= {k: str(v) for k, v in {**world, "RANK": rank, "LOCAL_RANK": rank % local}.items()}
            return
        pids.append(pid)
    worst, stopped = 0, set()
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(pid, signal.SIGTERM) for pid in pids])
    while pids:
        pid, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.add(pid)
            continue
        pids.remove(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not worst:
            worst = code if code > 0 else 128 - code
            deadline = time.monotonic() + 2  # to notice it by themselves, and to say so
            while {*pids} - stopped and time.monotonic() < deadline:
                if (pid := os.waitpid(-1, os.WNOHANG)[0]) == 0:
                    time.sleep(0.01)
                else:
                    pids.remove(pid)
            for other in pids:
                os.kill(other, signal.SIGKILL if other in stopped else signal.SIGTERM)
    os._exit(worst)


def in_rank(rank: int, hooks: dict) -> None:
    """Hooks for one process of as_ranks() alone."""
    if int(os.environ["RANK"]) == rank:
        for hook, value in hooks.items():
            HOOKS[hook](value)


def hang() -> None:
    """As in a call that never returns: no handler runs, and the default of SIGTERM ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(60)


def set_values(values: dict) -> None:
    """module.NAME -> value."""
    for path, value in values.items():
        module, _, name = path.rpartition(".")
        setattr(importlib.import_module(module), name, value)


def hide_module(name: str) -> None:
    for loaded in [m for m in sys.modules if m.split(".")[0] == name or m.startswith("torch.utils.tensorboard")]:
        del sys.modules[loaded]
    sys.modules[name] = None


def fill_disk_of_events(_: bool) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    RecordWriter.write = write


def leave_memory(count: int) -> None:
    import helper.machine.lane_memory

    helper.machine.lane_memory.free = lambda device: count


def limit_memory(more: int) -> None:
    """This process may have so many bytes beside those it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


HOOKS = {
    "memory_left": leave_memory,
    "events_full": fill_disk_of_events,
    "fsync": lambda count: die_at_fsync(count, tear=False),
    "torn": lambda count: die_at_fsync(count, tear=True),
    "signals": lambda where: [at_step(k, lambda n=n: os.kill(os.getpid(), n)) for k, n in where],
    "group_signal": signal_group,
    "evaluation_signal": signal_in_evaluation,
    "bug_at": lambda count: at_step(count, planted_bug),
    "fsize": lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    "hide": hide_module,
    "memory": limit_memory,
    "hang_at": lambda count: at_step(count, hang),
    "set": set_values,
    "ranks": as_ranks,
    "hosts": lambda count: as_ranks(count, hosts=count),
    "in_rank": lambda where: in_rank(*where),
    "env": lambda values: os.environ.update(values),
}


def child(job: dict) -> int:
    os.chdir(job["cwd"])
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    script = ROOT / job["script"]
    sys.argv = [str(script), *job["argv"]]

    def work() -> None:
        for hook, value in job["hooks"].items():
            HOOKS[hook](value)
        runpy.run_path(str(script), run_name="__main__")

    return exit_code(work)


def exit_code(work: Callable[[], object]) -> int:
    """Do the work of a program; the code to exit with."""
    code = 0
    try:
        work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def python(argv: list[str]) -> None:
    """Run what `python argv...` runs."""
    argv = argv[argv[0] == "-u" :]
    if argv[0] in ("-m", "-c"):
        sys.argv, sys.path[0] = [argv[0], *argv[2:]], os.getcwd()
        if argv[0] == "-m":
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent)
        runpy.run_path(argv[0], run_name="__main__")


def started(request: dict, fds: list[int]) -> int:
    """Be the process that interpreter_client.py asks for; fds: its files, under other numbers."""
    for fd, number in [(fcntl.fcntl(fd, fcntl.F_DUPFD, 1000), n) for fd, n in zip(fds, request["fds"], strict=True)]:
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    for name in ENVIRONMENT - request["env"].keys():
        os.environ.pop(name, None)
    os.environ.update(request["env"])
    # the old ones take their files as seekable or not
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, "rww"[fd], buffering=1, closefd=False) for fd in range(3))
    return exit_code(lambda: python(request["argv"]))


def attend(client: socket.socket) -> None:
    """Start a process for a client, and end it if the client is killed."""
    request, fds, *_ = socket.recv_fds(client, 1 << 20, 99)
    pid = os.fork()
    if pid == 0:
        client.close()
        os._exit(started(json.loads(request), fds))
    for fd in fds:
        os.close(fd)
    client.send(str(pid).encode())
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, client], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        client.send(str(os.waitpid(pid, 0)[1]).encode())


def serve(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    if os.fork():  # the socket is open when the first job starts
        listener.close()
        return
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)  # or the end of the nursery would not be seen
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    nursery = os.pidfd_open(os.getppid())
    while nursery not in select.select([nursery, listener], [], [])[0]:
        client, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            attend(client)
            os._exit(0)
        client.close()
    os._exit(0)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    preload()
    gc.collect()
    gc.freeze()  # pages that the collector does not touch stay shared with the forked
    path, sys.executable = sys.argv[1:]
    serve(path)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "load" in job:
            os.environ.update(job["env"])
            for name in job["load"]:
                importlib.import_module(name)
            gc.freeze()
            print(json.dumps([job["number"], 0]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os._exit(child(job))
        print(json.dumps([job["number"], pid]), flush=True)
        print(json.dumps([job["number"], os.waitpid(pid, 0)[1]]), flush=True)
    os._exit(0)  # taking apart what was imported takes seconds


if __name__ == "__main__":
    main()
