"""A terminal of a given width, and the screen that a person sees in it."""

import fcntl
import logging
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager

import pyte

from etsam.screen import console

_ROWS = 50


class Terminal:
    """A pseudo-terminal whose output is kept, byte by byte."""

    def __init__(self, columns):
        self.columns, self.output = columns, b""
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        # until it is told, since whoever has a copy of the other end keeps it open
        while True:
            ended = self._ended.is_set()
            if select.select([self.ours], [], [], 0.05)[0]:
                try:
                    piece = os.read(self.ours, 65536)
                except OSError:  # the other end is closed
                    return
                self.output += piece
            elif ended:
                return

    def close(self):
        """Wait for the rest of the output; may be called twice."""
        if self.theirs is None:
            return
        os.close(self.theirs)
        self.theirs = None
        self._ended.set()
        self._reader.join()
        os.close(self.ours)

    def until(self, text):
        """Number of bytes up to the last time that `text` was written, once it was."""
        ends = time.monotonic() + 30
        while text.encode() not in self.output:
            assert time.monotonic() < ends, self.output
            time.sleep(0.01)
        return self.output.rindex(text.encode()) + len(text)

    def screen(self, after=None):
        """Lines of the screen, empty ones at the end left out; `after` bytes of the output, by default all."""
        screen = pyte.HistoryScreen(self.columns, _ROWS, history=1000)
        pyte.ByteStream(screen).feed(self.output[:after])
        gone = ["".join(line[x].data for x in range(self.columns)).rstrip() for line in screen.history.top]
        lines = [*gone, *(line.rstrip() for line in screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def text(self):
        """All of the screen as one text, in which lines that the terminal folded are whole."""
        return "".join(line if len(line) == self.columns else line + "\n" for line in self.screen())

    def run(self, *arguments, **settings):
        """Run a command in it; its status."""
        command = [sys.executable, "-m", "etsam", *map(str, arguments)]
        streams = {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs}
        return subprocess.run(command, **streams, check=False, timeout=300, **settings).returncode


@contextmanager
def standard_error(terminal, monkeypatch):
    """This process's standard error is the terminal, and its log has no other handlers."""
    with monkeypatch.context() as patch, open(os.dup(terminal.theirs), "w", buffering=1, encoding="utf-8") as stream:
        patch.setenv("COLUMNS", str(terminal.columns))
        patch.setenv("TERM", "xterm-256color")
        patch.setattr(logging.root, "handlers", [])
        patch.setattr(sys, "stderr", stream)
        console.cache_clear()  # rich asks only once whether anybody looks
        yield
    console.cache_clear()
