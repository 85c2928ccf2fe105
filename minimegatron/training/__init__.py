"""Training on real text, and the proof that it is right at every split.

Read in this order: `text.py`, `tokenizer.py` and `data.py` (what goes in), `optimizer.py`,
`loop.py` (a run), `oracle.py` (the same in one process, as plainly as possible), `parity.py` and
`report.py` (the comparison).
"""
