"""For those who teach and those who write lessons.

`notebooks/` checks, runs and normalises lessons; `nbval_plugin.py` makes a dead kernel cost
seconds.
"""
