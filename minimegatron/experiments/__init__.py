"""Runs that take too long for a lesson: made once, stored as small JSON, drawn by the lesson.

Each experiment is a module here with a function `run(say)`; `minimegatron experiment NAME` calls it
and stores what it returns beside it, with the command and the versions that made it. A number
nobody can make again proves nothing, so the lesson runs one point of it once more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXPERIMENTS = {
    "train_gpt": "a GPT on real text at tp=1, 2, 4 and dp=2, 400 steps each",
    "cheaper_gradients": "a GPT on real text with its gradients compressed in ten ways, dp=2",
    "overlap_and_fusion": "what overlap, chunks, buckets, fusion and copies are worth",
    "paper_step": "the paper's 1.2-billion model, a step on one GPU of 45 GB: speed and limit",
}


def stored(name: str) -> dict[str, Any]:
    """What the course keeps of the experiment `name`: command, versions, settings, results.

    Raises ValueError for a name that is no experiment, or one that nobody has stored.
    """
    check_name(name)
    if not file_of(name).is_file():
        raise ValueError(f"{name} is not stored yet: minimegatron experiment {name}")
    document: dict[str, Any] = json.loads(file_of(name).read_text(encoding="utf-8"))
    return document


def file_of(name: str) -> Path:
    """Where the course keeps it."""
    return Path(__file__).parent / f"{name}.json"


def check_name(name: str) -> None:
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there is {', '.join(EXPERIMENTS)}")


def as_json(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry of a dict, and each list on one line: small, and diffable."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    lines = [f"{indent} {json.dumps(k)}: {as_json(v, indent + ' ')}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
