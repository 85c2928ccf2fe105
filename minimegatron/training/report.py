"""How near is equal: the error of a tensor, the bands, and the report that shows both.

The error is max|a-b| / max(max|b|, 1e-3 times the largest value of its kind in the whole model).
The second term is there for gradients that are zero in mathematics (a key's bias: softmax does not
see it): both sides then hold rounding noise, whose ratio means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor

from minimegatron.ranks.ledger import Ledger

# float64 leaves rounding some six digits of room. float32: two orders of magnitude above its
# rounding (6e-8) for sums of this length; AdamW divides by the root of tiny second moments and so
# turns rounding into steps, hence the wide band of the parameters.
KINDS = ("loss", "logits", "gradients", "grad_norm", "parameters")
BANDS: dict[torch.dtype, dict[str, float]] = {
    torch.float64: dict.fromkeys(KINDS, 1e-10),
    torch.float32: dict(zip(KINDS, (2e-5, 2e-5, 1e-4, 1e-4, 2e-3), strict=True)),
}


def bands_of(dtype: torch.dtype, num_layers: int, largest_step: float = 0.0) -> dict[str, float]:
    """The bands of a model of so many layers; AdamW moved no parameter by more than `largest_step`.

    Half precision: u, the unit roundoff, is half a digit in the last place: 2**-8 in bf16, 2**-11
    in fp16. Forward, a number is rounded some 16 times in series a layer (norm, QKV, scores,
    softmax, context, output, sum over tp, bias, residual; norm, up, GeLU, down, sum, bias,
    residual) and 4 times outside. R independent roundings of at most u add up as a random walk,
    to u sqrt(R); the worst of thousands of numbers is taken as three times that. Backward has
    two products for one: 3 R in all for a gradient. A norm averages the worst away, and the loss,
    a mean over tokens in float32, nearly everything. Where a gradient is smaller than its rounding,
    AdamW may go the wrong way at full speed: that bounds the parameters, whose typical error
    `updates` judges: the length of the difference against that of the way, which an optimizer
    that stands still gets wrong by 1.

    Raises ValueError for a dtype without bands.
    """
    if dtype in BANDS:
        return BANDS[dtype]
    if dtype not in (torch.float16, torch.bfloat16):
        known = (*BANDS, torch.bfloat16, torch.float16)
        raise ValueError(f"dtype={dtype}: parity has bands for {', '.join(map(str, known))}")
    u, roundings = torch.finfo(dtype).eps / 2, 16 * num_layers + 4
    return {
        "loss": u,
        "logits": 3 * u * math.sqrt(roundings),
        "gradients": 3 * u * math.sqrt(3 * roundings),
        "grad_norm": u * math.sqrt(roundings),
        "parameters": u + 2 * largest_step,
        "updates": 0.5,
    }


LABELS = {"grad_norm": "gradient norm", "masks": "dropout masks"}


def tensor_error(found: Tensor, wanted: Tensor, largest: float) -> float:
    """The error of one tensor, `largest` being the largest value of its kind; inf if not finite."""
    if found.shape != wanted.shape:
        return math.inf
    if not wanted.numel():
        return 0.0
    wanted = wanted.double()
    difference = float((found.double() - wanted).abs().max())
    if not math.isfinite(difference):
        return math.inf
    scale = max(float(wanted.abs().max()), 1e-3 * largest)
    if scale == 0.0:
        return math.inf if difference else 0.0
    return difference / scale


@dataclass
class ParityReport:
    """What `parity` found: `.ok`, and for each kind the worst error and the tensor it is in.

    `errors` and `worst` have the keys loss, logits, gradients, grad_norm, parameters (and, with
    dropout, masks: 0.0, or inf where a mask was equal or different that must not be). `ledger[r]`
    holds what rank r sent in the first step.
    """

    title: str
    bands: dict[str, float]
    ledger: list[Ledger]
    errors: dict[str, float] = field(default_factory=dict)
    worst: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every error lies within its band."""
        return all(self.errors[kind] <= self.band(kind) for kind in self.errors)

    def band(self, kind: str) -> float:
        """The largest error of this kind that counts as equal."""
        return self.bands.get(kind, 0.0)

    def note(self, kind: str, name: str, error: float) -> None:
        """Keep the error if it is the worst of its kind so far; of equal ones, the first."""
        # A margin: errors that are equal in mathematics must name the same tensor everywhere.
        if kind not in self.errors or error > (1 + 1e-6) * self.errors[kind]:
            self.errors[kind], self.worst[kind] = error, name

    def compare(
        self,
        kind: str,
        found: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor],
        partly: bool = False,
    ) -> None:
        """Note the error of every tensor of one kind; infinite for a missing or surplus one.

        With `partly`, `found` need not hold everything: the others are judged elsewhere.
        """
        largest = max((float(t.abs().max()) for t in wanted.values() if t.numel()), default=0.0)
        for name in sorted(found if partly else wanted.keys() | found.keys()):
            both = name in wanted and name in found
            error = tensor_error(found[name], wanted[name], largest) if both else math.inf
            self.note(kind, name, error)

    def rows(self) -> list[tuple[str, str]]:
        """What was compared, and the verdict in words that are the same on every machine."""
        return [(LABELS.get(kind, kind), self._verdict(kind)) for kind in self.errors]

    def _verdict(self, kind: str) -> str:
        error, band = self.errors[kind], self.band(kind)
        if error <= band:
            return f"equal (<= {band:.0e})" if band else "as they should be"
        where = f"worst: {self.worst[kind]}"
        if not math.isfinite(error):
            return f"DIFFERENT; {where}"
        # A power of ten: the digits of a wrong result may depend on the machine.
        return f"DIFFERENT by more than {10.0 ** math.floor(math.log10(error)):.0e}; {where}"

    def _heading(self) -> str:
        return f"{self.title}: {'equal' if self.ok else 'NOT EQUAL'}"

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join([self._heading(), *(f"  {a:{width}}  {b}" for a, b in rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            f'<tr><th scope="row" style="text-align:left">{escape(a)}</th>'
            f'<td style="text-align:left">{escape(b)}</td></tr>'
            for a, b in self.rows()
        )
        return (
            f'<table><caption style="text-align:left">{escape(self._heading())}</caption>'
            '<thead><tr><th scope="col" style="text-align:left">against one process</th>'
            '<th scope="col" style="text-align:left">verdict</th></tr></thead>'
            f"<tbody>{body}</tbody></table>"
        )
