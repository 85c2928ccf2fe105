"""What forward keeps for backward, term by term: section 4 of arXiv:2205.05198.

s tokens, b sequences, hidden size h, a heads, t tensor-parallel ranks, two bytes an element, one a
mask's. A layer keeps sbh(34 + 5as/h) bytes: attention 11sbh + 5as²b, MLP 19sbh, layer norms 4sbh.
Tensor parallelism divides what lies inside the split products, sequence parallelism the rest.
Selective recompute drops the 5as²b, full recompute keeps the 2sbh of the layer's input. Two terms
of then are gone today: a fused attention kernel (arXiv:2205.14135) never writes scores down, and
without dropout there are no masks. Left out, as in the paper, is what has no h: layer norms' means
and deviations. Megatron-LM: `megatron/training/theoretical_memory_usage.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from minimegatron.models.config import GPTConfig


@dataclass(frozen=True)
class Term:
    """Bytes on each rank of one tensor that the module `place` keeps; `formula` at 2 an element."""

    place: str
    what: str
    formula: str
    bytes: int


Rows = tuple[tuple[str, str, int, str, str, str], ...]
# The module, what it keeps, 2 or 1 bytes (of masks) x a number of elements, who divides it by t
# (tp; sequence parallelism; that, unless the gathered input is kept), what must be switched on.
_LAYER: Rows = (
    ("ln1", "input", 2, "sbh", "sequence", ""),
    ("attention.qkv", "input", 2, "sbh", "gathered", ""),
    ("attention", "query", 2, "sbh", "tp", ""),
    ("attention", "key", 2, "sbh", "tp", ""),
    ("attention", "value", 2, "sbh", "tp", ""),
    ("attention", "softmax", 2, "as²b", "tp", "scores"),
    ("attention", "dropout mask", 1, "as²b", "tp", "scores dropout"),
    ("attention", "dropped softmax", 2, "as²b", "tp", "scores dropout"),
    ("attention", "log of softmax's sums", 4, "asb", "tp", "kernel"),
    ("attention.out", "input", 2, "sbh", "tp", ""),
    ("", "dropout mask of attention", 1, "sbh", "sequence", "dropout"),
    ("ln2", "input", 2, "sbh", "sequence", ""),
    ("mlp.up", "input", 2, "sbh", "gathered", ""),
    ("mlp", "GELU's input", 8, "sbh", "tp", ""),
    ("mlp.down", "input", 8, "sbh", "tp", ""),
    ("", "dropout mask of the MLP", 1, "sbh", "sequence", "dropout"),
)
_RECOMPUTED: Rows = (("", "the layer's input", 2, "sbh", "sequence", ""),)
_OUTSIDE: Rows = (
    ("embedding", "dropout mask", 1, "sbh", "sequence", "dropout"),
    ("final_norm", "input", 2, "sbh", "sequence", "pre"),
    ("head", "input", 2, "sbh", "gathered", ""),
    ("loss", "softmax in float32", 4, "sbv", "tp", ""),
)


def activation_terms(config: GPTConfig, batch: int, tp: int = 1, element: int = 2) -> list[Term]:
    """One layer's terms, on `batch` sequences of `seq_length`; `element` bytes an activation."""
    rows = _RECOMPUTED if config.recompute == "full" else _LAYER
    return _terms(rows, config, batch, tp, element)


def outside_terms(config: GPTConfig, batch: int, tp: int = 1, element: int = 2) -> list[Term]:
    """What embedding, final norm, output product and loss keep."""
    return _terms(_OUTSIDE, config, batch, tp, element)


def activation_bytes(config: GPTConfig, batch: int, tp: int = 1, element: int = 2) -> int:
    """Bytes of activations on each rank between forward and backward: all layers and the rest."""
    layers = config.num_layers * activation_terms(config, batch, tp, element)
    return sum(term.bytes for term in layers + outside_terms(config, batch, tp, element))


def _terms(rows: Rows, config: GPTConfig, batch: int, tp: int, element: int) -> list[Term]:
    kernel = {"explicit": "scores", "sdpa": "kernel"}[config.attention]
    on = {config.layer_norm, kernel if config.recompute is None else ""}
    on |= {"dropout"} if config.dropout > 0 else set()
    split, tokens = config.sequence_parallel, config.seq_length * batch
    ways = {"tp": tp, "sequence": tp if split else 1}
    ways["gathered"] = 1 if config.keep_gathered else ways["sequence"]
    scores, vocabulary = config.num_heads * tokens, -(-config.vocab_size // tp) * tp
    counts = {"sbh": tokens * config.hidden_size, "sbv": tokens * vocabulary, "asb": scores}
    counts["as²b"] = scores * config.seq_length
    terms = []
    for place, what, size, unit, who, needs in rows:
        if set(needs.split()) <= on:
            formula = f"{size if size > 1 else ''}{unit}{'/t' if ways[who] > 1 else ''}"
            # A mask has one byte and what is kept in float32 four, whatever an activation has.
            size = size * element // 2 if unit in ("sbh", "as²b") and size > 1 else size
            terms.append(Term(place, what, formula, size * counts[unit] // ways[who]))
    return terms
