"""Many processes, one notebook: everything else in the course stands on this folder.

Read in this order: `launch.py` (what a learner calls), `pool.py` and `rank.py` (the two sides of a
rank), `mesh.py` (who talks to whom), `collectives.py` (what they say), `ledger.py` (what it cost),
`deadlock.py` (why nobody answers).
"""
