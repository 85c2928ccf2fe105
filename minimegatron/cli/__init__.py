"""The command line: `main.py` declares the commands, each of the others is the body of one."""

from minimegatron.cli.main import app

__all__ = ["app"]
