"""A line that shows that a long call is alive: on after two seconds, gone when it ends.

Off under nbval, which compares what cells show, and where the output is neither a notebook nor a
terminal.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

AFTER = 2.0  # seconds before the line appears
EVERY = 0.5  # seconds between two updates


def _notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def wanted() -> bool:
    """Whether there is somebody to look at the line."""
    if "PYTEST_CURRENT_TEST" in os.environ or os.environ.get("MINIMEGATRON_PROGRESS") == "0":
        return False
    return _notebook() or sys.stderr.isatty()


class ProgressLine:
    """Shown in a notebook as a display of its own, in a terminal as the last line of stderr."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._next = self._begin + AFTER
        self._on = wanted()
        self._display: Any = None
        self._width = 0

    def update(self, text: str) -> None:
        """Show `text` with the seconds passed, if it is time to."""
        now = time.monotonic()
        if not self._on or now < self._next:
            return
        self._next = now + EVERY
        self._show(f"{now - self._begin:.0f} s · {text}")

    def clear(self) -> None:
        """Take the line away."""
        if self._display is not None or self._width:
            self._show("")

    def _show(self, line: str) -> None:
        if not _notebook():
            sys.stderr.write("\r" + line.ljust(self._width) + ("" if line else "\r"))
            sys.stderr.flush()
            self._width = len(line)
            return
        from IPython.display import HTML, display

        small = HTML(f"<small>{line}</small>")
        if self._display is None:
            self._display = display(small, display_id=True)
        else:
            self._display.update(small)
