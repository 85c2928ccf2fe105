"""Every compatible pair of option values occurs in at least one model that is equal.

Pairs that are not compatible raise; `minimegatron features` lists them.
"""

from __future__ import annotations

from itertools import combinations, product

import pytest
from allpairspy import AllPairs

import minimegatron as mm
from minimegatron.cli.features import INCOMPATIBLE

OPTIONS: dict[str, list] = {
    "tp": [1, 2, 4],
    "dp": [1, 2, 4],
    "layer_norm": ["pre", "post"],
    "tie_embeddings": [True, False],
    # The fused kernel keeps its dropout mask to itself, so dropout goes with "explicit" only.
    "attention": [("sdpa", 0.0), ("explicit", 0.0), ("explicit", 0.1)],
    "vocab_size": [24, 29],  # 29 divides by none of the axes
    "microbatches": [1, 2, 3],
    "extra": [0, 1],  # sequences beyond an equal number for all: an odd batch
    # (sequence_parallel, keep_gathered)
    "sequence": [(False, False), (True, False), (True, True)],
    "recompute": [None, "full", "selective"],
    "zero": [0, 1, 2, 3],
}
NAMES = list(OPTIONS)


def compatible(row):
    """Whether a (possibly unfinished) row fits on eight ranks."""
    case = dict(zip(NAMES, row, strict=False))
    return case.get("tp", 1) * case.get("dp", 1) <= 8


def missing(cases):
    """The pairs, (place, value) each, that no case holds although eight ranks have room for it."""
    for i, j in combinations(range(len(NAMES)), 2):
        for a, b in product(OPTIONS[NAMES[i]], OPTIONS[NAMES[j]]):
            room = (NAMES[i], a, NAMES[j], b) != ("tp", 4, "dp", 4)
            if room and not any(case[i] == a and case[j] == b for case in cases):
                yield (i, a), (j, b)


CASES = [tuple(row) for row in AllPairs(list(OPTIONS.values()), filter_func=compatible)]
while pair := next(missing(CASES), None):  # with a filter, AllPairs may leave a few out
    filled = [tuple(dict(pair).get(i, value) for i, value in enumerate(row)) for row in CASES]
    CASES.append(next(filter(compatible, reversed(filled))))
SPLIT = (True, False)
CASES.append((8, 1, "pre", True, ("explicit", 0.1), 29, 2, 1, SPLIT, "full", 1))
CASES.append((2, 4, "post", False, ("sdpa", 0.0), 29, 3, 1, SPLIT, "selective", 3))
CASES.append((2, 2, "pre", True, ("explicit", 0.1), 29, 2, 1, SPLIT, "full", 3))  # all at once


def test_the_cases_hold_every_compatible_pair():
    assert not list(missing(CASES))
    assert all(compatible(case) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    options = dict(zip(NAMES, case, strict=True))
    options["attention"], options["dropout"] = options["attention"]
    options["sequence_parallel"], options["keep_gathered"] = options.pop("sequence")
    batch = options["dp"] * options["microbatches"] + options.pop("extra")
    config = mm.GPTConfig(
        vocab_size=options.pop("vocab_size"),
        seq_length=8,
        hidden_size=16,
        num_layers=2,
        num_heads=8,
    )
    report = mm.parity(config, batch=batch, **options)
    assert report.ok, report
    assert ("masks" in report.errors) == (options["dropout"] > 0)


@pytest.mark.parametrize("clash", INCOMPATIBLE, ids=lambda clash: f"{clash.first}, {clash.second}")
def test_what_does_not_go_together_raises_and_says_so(clash):
    with pytest.raises((ValueError, mm.RankError)) as caught:
        clash.attempt()
    names = "zero pp compress sequence_parallel tp keep_gathered chunks dropout sdpa".split()
    for side in (clash.first, clash.second):
        assert any(name in side and name in str(caught.value) for name in names)
