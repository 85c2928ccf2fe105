"""Section 3 of the paper: one matrix product on many ranks.

Read in this order: `operators.py` (f, g and their relatives), `linear.py` (the two ways to cut a
matrix), `vocabulary.py` (the embedding and the loss), `dropout.py` (the two random streams),
`recompute.py` (forward again instead of kept), `deferred.py` (weight gradients that wait).
`shards.py` is the bookkeeping below them: which part of a dense tensor a rank holds.
"""
