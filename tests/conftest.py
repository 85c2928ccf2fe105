"""What every test starts from."""

from __future__ import annotations

import os

# Before any rank or kernel is started: they inherit it.
os.environ["MINIMEGATRON_PROGRESS"] = "0"
