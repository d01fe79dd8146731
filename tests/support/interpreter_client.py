"""The Python that programs under test start others with: it asks the nursery for a process that has imported torch.

interpreter_client.py SOCKET [flags and arguments of python]. It passes on its files, folder, environment and signals,
and ends as that process does.
"""

import contextlib
import json
import os
import signal
import socket
import sys


def inherited() -> list[int]:
    """The open files of this process that are not its own."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the listing itself is closed by now
            if os.get_inheritable(fd):
                found.append(fd)
    return found


def main() -> None:
    path, *argv = sys.argv[1:]
    if argv[:2] == ["-m", "submitit.local._local"]:  # its own process id is the number of its job
        os.execv(sys.executable, [sys.executable, *argv])
    fds = inherited()
    request = {"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ), "fds": fds}
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(path)
    socket.send_fds(server, [json.dumps(request).encode()], fds)
    pid = int(server.recv(99))

    def passed_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, passed_on)
    code = os.waitstatus_to_exitcode(int(server.recv(99)))
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
