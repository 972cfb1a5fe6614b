"""Users of embedded servers as processes of their own, and the search for processes that are left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


class FailedError(Exception):
    """What a user process raised: the class name and the message."""


class User:
    """A process that runs ``user.py``."""

    def __init__(self, *, prefix: Sequence[str] = (), **environment: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__).with_name("user.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_ROOT), **environment},
        )

        self._waiting = 0

    def is_idle(self) -> bool:
        """Whether it lives and owes no answer."""
        return self._waiting == 0 and self.process.poll() is None

    def send(self, *command: Any) -> None:
        """Give a command whose answer :meth:`answer` returns later."""
        self._waiting += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the user process has died"
        answer = json.loads(line)
        self._waiting -= 1
        if "error" in answer:
            raise FailedError(": ".join(answer["error"]))
        return answer["result"]

    def __call__(self, *command: Any) -> Any:
        self.send(*command)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        """End the process by the end of its input; once it has ended that does nothing."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


Users = Callable[[int], list[User]]


def unprivileged() -> tuple[str, ...]:
    """The prefix of a command that runs it as ``nobody``.

    The capability lets it read a Python environment below ``/root``; it does not let it write.
    """
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    assert setpriv, "running as root, these tests need setpriv of util-linux"
    capability = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
    return (setpriv, "--reuid=nobody", "--regid=nogroup", "--clear-groups", *capability, "--")


def processes_of(directory: Path) -> dict[int, str]:
    """The living processes that name ``directory`` in their command line or have it as working directory."""
    found = {}
    if Path("/proc/self").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    working = os.fsencode((entry / "cwd").readlink())
                    if os.fsencode(directory) in command or working.startswith(os.fsencode(directory)):
                        found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    else:
        listed = subprocess.run(["ps", "axo", "pid=,command="], capture_output=True, check=True).stdout
        for line in listed.splitlines():
            if os.fsencode(directory) in line:
                found[int(line.split()[0])] = line.decode(errors="replace")
    return found


def servers_of(directory: Path) -> set[int]:
    """The living server processes of ``directory``: all but the keeper, which ends last."""
    return {pid for pid, command in processes_of(directory).items() if "keeper" not in command}


def keeper_of(directory: Path) -> int:
    """The keeper's process id."""
    found = [pid for pid, command in processes_of(directory).items() if "keeper" in command]
    assert len(found) == 1
    return found[0]


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll until ``condition`` holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass in {seconds:g} s"
        time.sleep(0.01)


def end_processes_of(directory: Path) -> None:
    """Kill what a failed test has left."""
    for pid in processes_of(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
