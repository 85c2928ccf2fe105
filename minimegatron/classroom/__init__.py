"""For those who teach and those who write lessons: what a stored notebook must look like, and nbval.

`notebooks/` checks, runs and normalises lessons; `nbval_plugin.py` makes a dead kernel cost seconds.
"""
