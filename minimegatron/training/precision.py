"""Mixed precision: compute in 16 bits, keep in 32 what 16 bits cannot hold.

"Mixed Precision Training", arXiv:1710.03740, section 3: weights and activations in half precision,
a *master copy* of the weights in float32 (1 + a tiny update is 1 in half precision), gradients
summed in float32, and the loss multiplied by a scale before backward, so that small gradients do
not fall below what fp16 can hold. The scale looks for its own size: an overflow lowers it, a long
time without one raises it. Megatron-LM: `DynamicGradScaler` in
`megatron/core/optimizer/grad_scaler.py`, `Float16OptimizerWithFloat16Params`.
"""

from __future__ import annotations

# The largest power of two that float32, the loss's dtype, can hold.
LARGEST_SCALE = 2.0**127


class DynamicLossScaler:
    """The factor on the loss: lower after overflows, higher after a long time without.

    The first `hysteresis` - 1 overflows are forgiven; each further one multiplies the scale by
    `backoff_factor`. Only when the scale grows are they forgiven anew: good steps alone restore
    nothing. `growth_interval` good steps in a row multiply it by `growth_factor`. It stays
    between `min_scale` and `max_scale` (None: 2**127). The defaults are Megatron-LM's; others are
    settings:

        torch.amp.GradScaler  DynamicLossScaler(2**16, growth_interval=2000, hysteresis=1,
                                                min_scale=0.0)
        Apex                  the same with max_scale=2**24

    Raises ValueError for a setting that cannot work, naming it.
    """

    def __init__(
        self,
        initial_scale: float = 2**32,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 1000,
        hysteresis: int = 2,
        min_scale: float = 1.0,
        max_scale: float | None = None,
    ) -> None:
        top = LARGEST_SCALE if max_scale is None else float(max_scale)
        for setting, fine, allowed in (
            (f"growth_factor={growth_factor}", growth_factor > 1, "above 1"),
            (f"backoff_factor={backoff_factor}", 0 < backoff_factor < 1, "between 0 and 1"),
            (f"growth_interval={growth_interval}", growth_interval >= 1, "at least 1"),
            (f"hysteresis={hysteresis}", hysteresis >= 1, "at least 1"),
            (f"min_scale={min_scale}", min_scale >= 0, "at least 0"),
            (
                f"initial_scale={initial_scale}",
                0 < initial_scale and min_scale <= initial_scale <= top,
                f"above 0, from min_scale={min_scale} to max_scale={top}",
            ),
        ):
            if not fine:
                raise ValueError(f"{setting} is not {allowed}")
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.hysteresis = growth_interval, hysteresis
        self.min_scale, self.max_scale = min_scale, top
        self.scale = float(initial_scale)
        self.good_steps = 0  # in a row, since the last overflow or growth
        self.overflows_left = hysteresis  # the last of them lowers the scale

    def update(self, found_inf: bool) -> None:
        """After a step: `found_inf` says whether any gradient, on any rank, was not finite."""
        if found_inf:
            self.good_steps = 0
            self.overflows_left -= 1
            if self.overflows_left <= 0:
                self.scale = max(self.scale * self.backoff_factor, self.min_scale)
            return
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.good_steps = 0
            self.overflows_left = self.hysteresis
            self.scale = min(self.scale * self.growth_factor, self.max_scale)
