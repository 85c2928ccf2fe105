"""Every rank a copy of the model and other sequences; gradients averaged.

Read in this order: `gradients.py` (buckets, overlap, means over tokens), `pieces.py` (what a rank's
optimizer updates), `zero.py` (copies shared out), `hierarchical.py` and `compression.py` (cheaper
messages).
"""
