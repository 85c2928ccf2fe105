"""Upkeep of the lessons: what a stored notebook must look like, and how to make it so.

`python -m minimegatron.classroom.notebooks check` reads, `... run` executes and stores.
"""
