"""Training on real text, and the proof that it is right at every split.

Read in this order: `text.py`, `tokenizer.py` and `data.py` (what goes in), `forward_backward.py`,
`optimizer.py` and `precision.py` (a step), `loop.py` (a run), `recompute.py` (what a step keeps in
memory), `oracle.py` (the same in one process, as plainly as possible), `parity.py`,
`parity_rank.py` and `report.py` (the comparison).
"""
