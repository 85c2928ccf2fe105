"""A line that shows that a long call is alive: on after two seconds, gone when it ends.

Off under nbval, which compares what cells show, and where the output is neither a notebook nor a
terminal.
"""

import math
import os
import sys
import time
import uuid

AFTER = 2.0  # seconds before the line appears
EVERY = 0.5  # seconds between two updates


def _notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def wanted() -> bool:
    """Whether there is somebody to look at the line."""
    off = "PYTEST_CURRENT_TEST" in os.environ or os.environ.get("MINIMEGATRON_PROGRESS") == "0"
    return not off and (_notebook() or sys.stderr.isatty())


class ProgressLine:
    """Shown in a notebook as a display of its own, in a terminal as the last line of stderr."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._next = self._begin + AFTER if wanted() else math.inf
        self._id, self._shown = uuid.uuid4().hex, ""

    def update(self, text: str) -> None:
        """Show `text` with the seconds passed, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY
        self._show(f"{now - self._begin:.0f} s · {text}")

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._show("")

    def _show(self, line: str) -> None:
        if _notebook():
            from IPython.display import HTML, display

            again = {"update": True} if self._shown else {}
            display(HTML(f"<small>{line}</small>"), display_id=self._id, **again)
        else:
            sys.stderr.write("\r" + line.ljust(len(self._shown)) + ("" if line else "\r"))
            sys.stderr.flush()
        self._shown = line
