"""What a model costs before it runs, counted.

`flops.py` counts parameters and arithmetic; `memory.py` and `activations.py` bytes; `traffic.py`
what a step sends and `network.py` how long that takes; `run.py` days, money and energy.
`published.py` reads what papers print, to hold all of it against.
"""
