"""`python -m minimegatron.cli`, for torchrun."""

from minimegatron.cli.main import app

app()
