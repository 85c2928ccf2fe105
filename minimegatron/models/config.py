"""The sizes and switches of a model, checked where they are written down.

Megatron-LM's `TransformerConfig` has some 200 fields; these are the ones that the lessons change.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPTConfig:
    """A GPT: sizes in numbers, `dropout` a probability, `init_std` the weights' deviation.

    `layer_norm` "pre" (GPT-2) or "post" (the first transformer); `attention` "sdpa" (torch's fused
    kernel) or "explicit" (scores that can be seen). `sequence_parallel` splits over tp what lies
    between the split products, too; `keep_gathered` then keeps their gathered input for backward,
    in place of gathering it again. `recompute` None, "full" or "selective". Raises ValueError for a
    value that makes no model, naming it.
    """

    vocab_size: int
    seq_length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    dropout: float = 0.0
    layer_norm: str = "pre"
    tie_embeddings: bool = True
    init_std: float = 0.02
    attention: str = "sdpa"
    sequence_parallel: bool = False
    recompute: str | None = None
    keep_gathered: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "seq_length", "hidden_size", "num_layers", "num_heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number of at least 1")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide by num_heads {self.num_heads}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} is not in 0 <= dropout < 1")
        if not self.init_std >= 0.0:
            raise ValueError(f"init_std={self.init_std} is not a standard deviation: at least 0")
        if self.keep_gathered and not self.sequence_parallel:
            raise ValueError("keep_gathered=True needs sequence_parallel=True: nothing is gathered")
        allowed: dict[str, tuple[str | None, ...]] = {
            "layer_norm": ("pre", "post"),
            "attention": ("sdpa", "explicit"),
            "recompute": (None, "full", "selective"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {values}")
