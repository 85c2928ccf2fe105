"""What a model costs before it runs: `flops.py` counts parameters and arithmetic."""
