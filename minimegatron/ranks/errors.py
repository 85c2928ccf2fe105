"""What a learner reads when a rank fails: which rank, which of their lines, which collective.

The text is the same on every run. A rank sends its exception as data (frames, not text), because
the source of a notebook's cells is known to the kernel only; it is put into words here.
"""

from __future__ import annotations

import linecache
import traceback
from dataclasses import dataclass, field

from minimegatron.ranks import place


class RankError(RuntimeError):
    """A rank raised or died. `rank` is its number, `traceback` its own traceback, as text."""

    def __init__(self, message: str, rank: int, traceback: str = "") -> None:
        super().__init__(message)
        self.rank, self.traceback = rank, traceback

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.rank, self.traceback)

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of the frames of `launch`."""
        return f"{type(self).__name__}: {self}".splitlines()


class RankTimeout(RankError):
    """No rank made progress: who waits where, and where their collectives first differ."""


@dataclass
class Failure:
    """An exception of a rank as data: its own words, its frames, and the one it came from."""

    kind: str
    text: str
    frames: list[tuple[str, int, str]] = field(default_factory=list)
    cause: Failure | None = None
    because: str = ""

    @staticmethod
    def of(error: BaseException) -> Failure:
        """Take the exception apart, in the rank."""
        found = traceback.walk_tb(error.__traceback__)
        frames = [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in found]
        text = "".join(traceback.format_exception_only(error)).strip()
        if isinstance(error, SyntaxError):  # its text holds the path of the file
            text = f"{type(error).__name__}: {error.msg}"
        failure = Failure(type(error).__name__, text, frames)
        source, because = error.__cause__, "was the direct cause of"
        if source is None and not error.__suppress_context__:
            source, because = error.__context__, "was being handled when this followed:"
        if source is not None:
            failure.cause, failure.because = Failure.of(source), because
        return failure

    @property
    def lost_peer(self) -> bool:
        """Whether this is only the echo of another rank's end."""
        signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
        return any(sign in self.text for sign in signs)

    def traceback(self) -> str:
        """The traceback in the learner's own lines (in ours, where there is none of theirs)."""
        lines = []
        if self.cause is not None:
            lines += [self.cause.traceback(), f"(the error above {self.because})"]
        frames = [frame for frame in self.frames if place.owner(frame[0]) == "learner"]
        if not frames:
            frames = [frame for frame in self.frames if place.owner(frame[0]) == "package"]
            frames = [frame for frame in frames if "/ranks/" not in frame[0].replace("\\", "/")]
        if frames:
            lines.append("Traceback (most recent call last):")
        for filename, line, function in frames:
            lines.append(f"  {place.name(filename, line)}, in {function}")
            source = linecache.getline(filename, line).strip()
            if source:
                lines.append(f"    {source}")
        return "\n".join([*lines, self.text])


def raised(rank: int, world_size: int, failure: Failure) -> RankError:
    """The error for a rank that raised."""
    text = failure.traceback()
    return RankError(f"{who(rank, world_size)} raised {failure.kind}\n\n{text}", rank, text)


def who(rank: int, world_size: int) -> str:
    """ "rank 1 of 4", "rank 0" where it is alone."""
    return f"rank {rank} of {world_size}" if world_size > 1 else "rank 0"
