"""Starts a keeper, and carries back why one could not start the servers."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from langmem_stack.embedded import binaries
from langmem_stack.embedded.layout import Layout
from langmem_stack.errors import ConfigurationError, EmbeddedServerError

__all__ = ["StartingKeeper", "framed"]

# A keeper that gives up has to end its servers before it tells why.
_REPORT_SECONDS = 20.0
# A longer wait, such as one without end, is more than select() can count.
_LONGEST_SELECT = 1e6
_FRAME = ("langmem-stack keeper: ", "\0")
_CODE = (
    "import json, sys; options = json.loads(sys.argv[2]); sys.path[:] = options.pop('path'); "
    "from langmem_stack.embedded.keeper import main; main(sys.argv[1], options)"
)


def framed(message: str) -> str:
    """Return a message so that :meth:`StartingKeeper.wait` finds it among whatever else is printed."""
    return message.join(_FRAME)


class StartingKeeper:
    """A keeper between its start and the moment in which its servers answer."""

    def __init__(self, place: Layout, keeper_lock: int, timeout: float) -> None:
        """Start a keeper for ``place`` that inherits the locked ``keeper.lock``.

        Its standard error is a pipe, which it closes when its servers answer or it ends.
        """
        if not sys.executable:
            raise ConfigurationError(
                "embedded mode runs a helper with sys.executable, which is empty in this process; "
                "set it to the path of a Python interpreter"
            )
        options = {
            "path": [str(Path(entry).absolute()) for entry in sys.path if isinstance(entry, str)],
            "binaries": binaries.find()._asdict(),
            "lock": keeper_lock,
            "timeout": timeout,
        }
        self._report, stderr = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, place.directory, json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd="/",
                start_new_session=True,
                pass_fds=(keeper_lock,),
            )
        except BaseException:
            os.close(self._report)
            raise
        finally:
            os.close(stderr)

    def wait(self, deadline: float) -> str:
        """Wait until the keeper is ready or has ended; return what it printed.

        Raises:
            EmbeddedServerError: what the keeper reports.
        """
        text = b""
        try:
            while self._readable(deadline + _REPORT_SECONDS - time.monotonic()):
                chunk = os.read(self._report, 4096)
                if not chunk:
                    # What we started has long ended: it forked the keeper.
                    self._process.wait()
                    break
                text += chunk
        finally:
            os.close(self._report)
        printed = text.decode(errors="replace").strip()
        if _FRAME[0] in printed:
            raise EmbeddedServerError(printed.rpartition(_FRAME[0])[2].partition(_FRAME[1])[0])
        return printed or "it was killed or ended without a word"

    def _readable(self, seconds: float) -> bool:
        return bool(select.select([self._report], [], [], min(max(seconds, 0.0), _LONGEST_SELECT))[0])
