"""What training keeps for every parameter: weights, gradients, optimizer state.

"ZeRO" (arXiv:1910.02054, section 3.1) counts 2 + 2 + 12 bytes in half precision: the weight, its
gradient, and Adam's fp32 copy of the weight with two moments. Megatron-LM differs in the gradient
(docs, "Distributed Optimizer"): in bf16 it is accumulated in fp32, in fp16 it is copied to fp32
before the step. ZeRO splits one kind after the other over the d ranks of dp: stage 1 the optimizer
state, 2 the gradients too, 3 all. Activations are counted in activations.py.
"""

from __future__ import annotations

# Bytes a parameter.
STATES: dict[str, dict[str, int]] = {
    "fp32": {"parameters": 4, "gradients": 4, "optimizer": 8},
    "bf16": {"parameters": 2, "gradients": 4, "optimizer": 12},
    "fp16": {"parameters": 2, "gradients": 2, "optimizer": 16},
    "ZeRO's fp16": {"parameters": 2, "gradients": 2, "optimizer": 12},
}
SPLIT_FROM_STAGE = {"optimizer": 1, "gradients": 2, "parameters": 3}


def state_bytes(
    precision: str, parameters: float = 1, dp: int = 1, zero: int = 0
) -> dict[str, float]:
    """Bytes on each rank: {"parameters": ..., "gradients": ..., "optimizer": ...}.

    `parameters` is how many the rank's model has before ZeRO splits them; left out, the bytes are
    those of one. Padding is not counted. Raises ValueError for an unknown precision or stage.
    """
    if precision not in STATES or zero not in range(4):
        raise ValueError(
            f"precision={precision!r}, zero={zero}: not one of {', '.join(STATES)} and 0 to 3"
        )
    return {
        kind: size * parameters / (dp if zero >= SPLIT_FROM_STAGE[kind] else 1)
        for kind, size in STATES[precision].items()
    }
