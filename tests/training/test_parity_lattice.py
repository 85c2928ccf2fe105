"""Every compatible pair of option values occurs in at least one model that is equal.

`make lattice` goes on: every compatible triple that includes pp or zero. Pairs that are not
compatible raise; `minimegatron features` lists them.
"""

from __future__ import annotations

import random
from itertools import combinations, product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minimegatron as mm
from minimegatron.cli.features import INCOMPATIBLE

OPTIONS: dict[str, list] = {
    "tp": [1, 2, 4],
    "dp": [1, 2, 4],
    "pp": [1, 2, 4],
    "schedule": ["1f1b", "gpipe", "interleaved", "zb_h1"],
    "chunks": [1, 2],
    "uneven": [False, True],  # stages
    "microbatches": [1, 2, 3, 4],
    "zero": [0, 1, 2, 3],
    # From here on any value goes with any other.
    "layer_norm": ["pre", "post"],
    "tie_embeddings": [True, False],
    # The fused kernel keeps its dropout mask to itself, so dropout goes with "explicit" only.
    "attention": [("sdpa", 0.0), ("explicit", 0.0), ("explicit", 0.1)],
    "vocab_size": [24, 29],  # 29 divides by none of the axes
    "extra": [0, 1],  # sequences beyond an equal number for all: an odd batch
    # (sequence_parallel, keep_gathered)
    "sequence": [(False, False), (True, False), (True, True)],
    "recompute": [None, "full", "selective"],
}
NAMES = list(OPTIONS)
BOUND = NAMES[: NAMES.index("layer_norm")]  # the options that restrict each other


def compatible(case):
    """Whether these values of BOUND go together, on at most eight ranks."""
    tp, dp, pp, schedule, chunks, uneven, m, zero = (case[name] for name in BOUND)
    rules = (
        tp * dp * pp <= 8,
        pp > 1 or (schedule == "1f1b" and not uneven),  # without a pipeline there is no schedule
        (schedule == "interleaved") == (chunks > 1),
        schedule != "interleaved" or m % pp == 0,
        schedule != "zb_h1" or m >= pp,
        not uneven or (pp, chunks) == (2, 1),  # of four layers
        pp == 1 or zero <= 1,
    )
    return all(rules)


TOGETHER = [
    case
    for values in product(*(OPTIONS[name] for name in BOUND))
    if compatible(case := dict(zip(BOUND, values, strict=True)))
]
POSSIBLE = {frozenset(three) for case in TOGETHER for three in combinations(case.items(), 3)}


def covering(size, wanted):
    """Cases that hold every possible group of `size` values for which `wanted(names)` is true."""
    draw, cases, left = random.Random(0), [], {}
    for names in filter(wanted, combinations(NAMES, size)):
        for values in product(*(OPTIONS[name] for name in names)):
            group = dict(zip(names, values, strict=True))
            if possible(group):
                left[frozenset(group.items())] = group
    while left:
        some = [filled(group, draw) for group in list(left.values())[:40] for _ in range(3)]
        best = max(some, key=lambda case: gain(case, left) - ranks(case))  # few ranks: fast
        cases.append(best)
        left = {key: group for key, group in left.items() if not key <= best.items()}
    return cases


def possible(group):
    """Whether some compatible case holds these (at most three) values."""
    bound = {item for item in group.items() if item[0] in BOUND}
    return not bound or any(bound <= three for three in POSSIBLE)


def filled(group, draw):
    """A compatible case with these values, the others at random."""
    bound = {name: value for name, value in group.items() if name in BOUND}
    fits = [case for case in TOGETHER if bound.items() <= case.items()]
    free = {name: draw.choice(OPTIONS[name]) for name in NAMES if name not in BOUND}
    return {**free, **draw.choice(fits), **group}


def ranks(case):
    return case["tp"] * case["dp"] * case["pp"]


def gain(case, left):
    return sum(key <= case.items() for key in left)


def split(**values):
    """A case: the first value of every option but these."""
    return {name: choices[0] for name, choices in OPTIONS.items()} | values


ALL = {"attention": ("explicit", 0.1), "vocab_size": 29, "extra": 1, "sequence": (True, False)}
CASES = [
    *covering(2, lambda names: True),
    split(tp=8, microbatches=2, zero=1, recompute="full", **ALL),
    split(tp=2, dp=4, microbatches=3, zero=3, recompute="selective", layer_norm="post"),
    split(tp=2, dp=2, microbatches=2, zero=3, recompute="full", **ALL),
    split(tp=2, dp=2, pp=2, schedule="zb_h1", microbatches=2, zero=1, recompute="full", **ALL),
]


def check(case):
    """Asserts that the case is equal to one process; returns its worst error."""
    options = dict(case)
    options["attention"], options["dropout"] = options["attention"]
    options["sequence_parallel"], options["keep_gathered"] = options.pop("sequence")
    if options.pop("uneven"):
        options["layers_per_stage"] = [1, 3]
    batch = options["dp"] * options["microbatches"] + options.pop("extra")
    config = mm.GPTConfig(
        vocab_size=options.pop("vocab_size"),
        seq_length=8,
        hidden_size=16,
        num_layers=max(4, options["pp"] * options["chunks"]),
        num_heads=8,
    )
    report = mm.parity(config, batch=batch, steps=2, **options)
    assert report.ok, report
    assert ("masks" in report.errors) == (options["dropout"] > 0)
    return max(report.errors.values())


def test_the_cases_hold_every_compatible_pair():
    held = {frozenset(pair) for case in CASES for pair in combinations(case.items(), 2)}
    for a, b in combinations(NAMES, 2):
        for pair in product(product([a], OPTIONS[a]), product([b], OPTIONS[b])):
            assert (frozenset(pair) in held) == possible(dict(pair)), pair


@pytest.mark.parametrize("case", CASES, ids=lambda case: ",".join(map(str, case.values())))
def test_parity(case):
    check(case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_triple_that_includes_pp_or_zero():
    cases = covering(3, lambda names: "pp" in names or "zero" in names)
    assert len(cases) > len(CASES)
    worst = max(check(case) for case in cases)
    print(f"\n{len(cases)} cases hold every triple with pp or zero; worst error {worst:.0e}")


@settings(
    max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.sampled_from(TOGETHER),
    st.fixed_dictionaries({n: st.sampled_from(OPTIONS[n]) for n in NAMES if n not in BOUND}),
)
def test_parity_of_drawn_cases(together, free):
    check({**free, **together})


@pytest.mark.parametrize("clash", INCOMPATIBLE, ids=lambda clash: f"{clash.first}, {clash.second}")
def test_what_does_not_go_together_raises_and_says_so(clash):
    with pytest.raises((ValueError, mm.RankError)) as caught:
        clash.attempt()
    names = "zero pp compress reduced interleaved zb_h1 micro-batches chunks tp keep_gathered "
    names += "sequence_parallel dropout sdpa"
    message = str(caught.value).lower()
    for side in (clash.first, clash.second):
        assert any(name in side and name in message for name in names.split()), message
