"""The transformer of the paper, whole: read `mlp.py`, `attention.py`, `transformer.py`, `gpt.py`.

`sharding.py` is the one table of how each parameter is split, `weights.py` draws the same initial
values at every split, `huggingface.py` takes GPT-2's, `generate.py` writes, `fusion.py` makes one
kernel of several.
"""
