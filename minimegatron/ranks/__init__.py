"""Many processes, one notebook: everything else in the course stands on this folder.

Read in this order: `mesh.py` (who talks to whom), `collectives.py` (what they say), `ledger.py`
(what it cost), `launch.py` (what a learner calls), `pool.py` and `rank.py` (the two sides of a
rank), `deadlock.py` (why nobody answers). The others serve these: `server.py`, `shipping.py` and
`using.py` before a call; `lifeline.py` and `torch_calls.py` inside a rank; `board.py`, `place.py`,
`errors.py` and `progress.py` for what the learner is told.
"""
