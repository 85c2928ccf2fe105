"""The schedules: in which order each rank of a pipeline works.

All but the last are one pattern: some forwards to fill the pipeline, then a backward and a forward
in turn until the forwards run out, then the backwards that are left. They differ in how many
forwards come first (more hide more waiting, and hold more activations) and, where the backward is
split, in how long W waits. Megatron-LM, core/pipeline_parallel/schedules.py:
`forward_backward_pipelining_without_interleaving` (1F1B), `..._with_interleaving`.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from minimegatron.pipeline_parallel.schedule import Action, Schedule

_shared = lru_cache(1 << 16)(
    Action
)  # the ranks' lists hold the same actions: a quarter of the time


def gpipe(p: int, m: int) -> Schedule:
    """All forwards, then all backwards: every rank holds m micro-batches.

    GPipe, arXiv:1811.06965, section 2.3 (its backwards run in reverse, at the same cost).
    """
    return Schedule([_in_turn([0] * m, m) for _ in range(p)], m)


def one_f_one_b(p: int, m: int) -> Schedule:
    """1F1B: rank r alternates from its forward number p - r on, and never holds more than those.

    PipeDream-Flush in arXiv:2104.04473, section 2.2.1.
    """
    return Schedule([_in_turn([0] * m, p - rank) for rank in range(p)], m)


def interleaved(p: int, m: int, v: int, warmup_factor: int = 2) -> Schedule:
    """1F1B on v chunks a rank: micro-batches in groups of p go through one chunk after the other.

    arXiv:2104.04473, section 2.2.2. Megatron-LM's `num_warmup_microbatches` is
    (p - rank - 1) * 2 + (v - 1) * p. With `warmup_factor=1` in place of the 2 each rank holds less,
    and has nothing to do while a message travels. Raises ValueError where p does not divide m.
    """
    if p < 1 or m % p:
        raise ValueError(f"interleaved takes micro-batches in groups of p={p}, and m={m}")
    chunks = [chunk for _ in range(m // p) for chunk in range(v) for _ in range(p)]
    warmups = [(p - rank - 1) * warmup_factor + (v - 1) * p for rank in range(p)]
    return Schedule([_in_turn(chunks, warmup + 1) for warmup in warmups], m, v)


def zb_h1(p: int, m: int) -> Schedule:
    """1F1B with the backward split; W waits, on rank r for r more Is, and fills the end.

    arXiv:2401.10241, section 2.1 and figure 3. Every rank holds p micro-batches, what rank 0 does
    under 1F1B. Raises ValueError for m < p: W could not wait so long.
    """
    if m < p:
        raise ValueError(f"zb_h1 needs as many micro-batches as ranks, not p={p}, m={m}")
    return Schedule([_in_turn([0] * m, p - rank, weights_wait=rank) for rank in range(p)], m)


def zb_h2(p: int, m: int) -> Schedule:
    """No bubble where F, I and W take the same time: nearly twice as many forwards come first.

    arXiv:2401.10241, section 2.2 and figure 3. Rank 0 holds 2p - 1 micro-batches; the ranks end one
    after another, as they started.
    """
    return Schedule([_in_turn([0] * m, 2 * (p - r) - 1, weights_wait=2 * r) for r in range(p)], m)


def zbv(p: int, m: int) -> Schedule:
    """No bubble with the memory of 1F1B: two chunks a rank, laid out as a V.

    arXiv:2401.10241, section 6 and figure 8. Rank 0 has the first and the last stage, and starts
    the backward of a micro-batch right after its forward.
    """
    (f0, i0, w0), (f1, i1, w1) = first, second = [[(kind, c) for kind in "FIW"] for c in (0, 1)]
    more = max(m, 2 * p - 1) - 2 * p + 1  # than the pattern needs; what m lacks is left out
    ranks = []
    for r in range(p):
        fill = [f0] * (2 * (p - r) - 1) + [f1, f0] * r
        steady = second * (p - r) + (first + second) * (more + r) + [i0, w0, *second] * (p - 1 - r)
        late = [w0, w1] * r + [w0] * (p - r)  # the Ws that are left, in the order of their Is
        drain = [i0, i1] * r + [each for w in late[: p - r] for each in (i0, w)] + late[p - r :]
        ranks.append([each for each in _numbered(fill + steady + drain) if each.microbatch < m])
    return Schedule(ranks, m, v=2, v_shaped=True)


def bubble_fraction(p: int, m: int, v: int = 1) -> float:
    """(p - 1) / (v m): idle time over IDEAL time where messages are free.

    arXiv:2104.04473, section 2.2: GPipe and 1F1B have v=1.
    """
    return (p - 1) / (v * m)


def _in_turn(chunks: list[int], lead: int, weights_wait: int | None = None) -> list[Action]:
    """`lead` forwards, then a backward and a forward in turn, then the backwards that are left.

    Args:
        chunks: the chunk of each forward; the backwards count them from the last to the first.
        weights_wait: split the backward; a W runs when this many more Is have run.
    """
    forwards = [("F", chunk) for chunk in chunks]
    last = max(chunks, default=0)
    back = [last - chunk for chunk in chunks]
    steps = forwards[:lead]
    for i, chunk in enumerate(back):
        steps.append(("B" if weights_wait is None else "I", chunk))
        if weights_wait is not None and i >= weights_wait:
            steps.append(("W", back[i - weights_wait]))
        steps += forwards[lead + i : lead + i + 1]
    if weights_wait is not None:
        steps += [("W", chunk) for chunk in back[max(0, len(back) - weights_wait) :]]
    return _numbered(steps)


def _numbered(steps: list[tuple[str, int]]) -> list[Action]:
    """(kind, chunk) as actions: each kind takes a chunk's micro-batches in order."""
    taken: Counter[tuple[str, int]] = Counter()
    actions = []
    for step in steps:
        actions.append(_shared(step[0], taken[step], step[1]))
        taken[step] += 1
    return actions


BY_NAME = {"gpipe": gpipe, "1f1b": one_f_one_b, "zb_h1": zb_h1}


def make_schedule(name: str, p: int, m: int, v: int = 1) -> Schedule:
    """The schedule of this name, "gpipe", "1f1b", "interleaved" or "zb_h1"; see its function.

    Raises ValueError for another name, and for v > 1 chunks where ranks have one each.
    """
    if name == "interleaved":
        return interleaved(p, m, v)
    if name not in BY_NAME:
        raise ValueError(f"schedule={name!r} is not one of {', '.join([*BY_NAME, 'interleaved'])}")
    if v > 1:
        raise ValueError(f"schedule={name!r} with chunks={v}: only 'interleaved' has more than one")
    return BY_NAME[name](p, m)
