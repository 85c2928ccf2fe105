"""What a learner reads when a rank fails: which rank, which of their lines, which collective.

The text is the same on every run. A rank sends its exception as data (frames, not text), because
the source of a notebook's cells is known to the kernel only; it is put into words here.
"""

import linecache
import traceback
from typing import Any, NamedTuple

from minimegatron.ranks import place


class RankError(RuntimeError):
    """A rank raised or died. `rank` is its number, `traceback` its own traceback, as text."""

    def __init__(self, message: str, rank: int = 0, traceback: str = "") -> None:
        super().__init__(message)
        self.rank, self.traceback = rank, traceback

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of the frames of `launch`."""
        return f"{type(self).__name__}: {self}".splitlines()


class RankTimeout(RankError):
    """No rank made progress: who waits where, and where their collectives first differ."""


class Failure(NamedTuple):
    """An exception of a rank as data: its type, and what is told of it and of those it came from.

    `chain`, the first cause first: (file, line, function) of each frame, the exception's own words,
    and what it has to do with the next.
    """

    kind: str
    chain: list[tuple[list[tuple[str, int, str]], str, str]]

    @staticmethod
    def of(error: BaseException) -> "Failure":
        """Take the exception apart, in the rank."""
        chain: list[Any] = []
        link: BaseException | None = error
        because = ""
        while link is not None:
            found = traceback.walk_tb(link.__traceback__)
            frames = [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in found]
            words = "".join(traceback.format_exception_only(link)).strip()
            if isinstance(link, SyntaxError):  # its text holds the path of the file
                words = f"{type(link).__name__}: {link.msg}"
            chain.insert(0, (frames, words, because))
            because = "\n(the error above was being handled when this followed:)"
            if link.__cause__ is not None or link.__suppress_context__:
                because = "\n(the error above was the direct cause of)"
                link = link.__cause__
            else:
                link = link.__context__
        return Failure(type(error).__name__, chain)

    @property
    def lost_peer(self) -> bool:
        """Whether this is only the echo of another rank's end."""
        signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
        return any(sign in self.chain[-1][1] for sign in signs)

    def traceback(self) -> str:
        """The traceback in the learner's own lines (in ours, where there is none of theirs)."""
        lines = []
        for every, words, because in self.chain:
            ours = [frame for frame in every if place.owner(frame[0]) == "package"]
            ours = [frame for frame in ours if "/ranks/" not in frame[0].replace("\\", "/")]
            frames = [frame for frame in every if place.owner(frame[0]) == "learner"] or ours
            if frames:
                lines.append("Traceback (most recent call last):")
            for filename, line, function in frames:
                source = linecache.getline(filename, line).strip()
                lines.append(f"  {place.name(filename, line)}, in {function}")
                lines += [f"    {source}"] if source else []
            lines.append(words + because)
        return "\n".join(lines)


def raised(rank: int, world_size: int, failure: Failure) -> RankError:
    """The error for a rank that raised."""
    text = failure.traceback()
    return RankError(f"{who(rank, world_size)} raised {failure.kind}\n\n{text}", rank, text)


def who(rank: int, world_size: int) -> str:
    """ "rank 1 of 4", "rank 0" where it is alone."""
    return f"rank {rank} of {world_size}" if world_size > 1 else "rank 0"
