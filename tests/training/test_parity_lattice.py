"""Every compatible pair of option values occurs in at least one model that is equal."""

from __future__ import annotations

from itertools import combinations

import pytest
from allpairspy import AllPairs

import minimegatron as mm

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
}
NAMES = list(OPTIONS)


def compatible(row):
    """Whether a (possibly unfinished) row fits on eight ranks."""
    case = dict(zip(NAMES, row, strict=False))
    return case.get("tp", 1) * case.get("dp", 1) <= 8


CASES = [tuple(row) for row in AllPairs(list(OPTIONS.values()), filter_func=compatible)]
CASES.append((8, 1, "pre", True, ("explicit", 0.1), 29, 2, 1))
CASES.append((2, 4, "post", False, ("sdpa", 0.0), 29, 3, 1))


def test_the_cases_hold_every_compatible_pair():
    for i, j in combinations(range(len(NAMES)), 2):
        for a in OPTIONS[NAMES[i]]:
            for b in OPTIONS[NAMES[j]]:
                held = any(case[i] == a and case[j] == b for case in CASES)
                assert held == ((NAMES[i], a, NAMES[j], b) != ("tp", 4, "dp", 4))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case):
    options = dict(zip(NAMES, case, strict=True))
    options["attention"], options["dropout"] = options["attention"]
    batch = options["dp"] * options["microbatches"] + options.pop("extra")
    config = mm.GPTConfig(
        vocab_size=options.pop("vocab_size"),
        seq_length=6,
        hidden_size=16,
        num_layers=2,
        num_heads=8,
    )
    report = mm.parity(config, batch=batch, **options)
    assert report.ok, report
    assert ("masks" in report.errors) == (options["dropout"] > 0)
