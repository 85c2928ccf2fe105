"""The two random streams of dropout.

Section 3 of arXiv:1909.08053 (and its appendix B.2): where every rank holds the same activations
(residuals, embedding) dropout must draw the same mask on all of them, or the replicas drift apart;
inside a split region (attention weights, and everywhere once the sequence is split) each rank holds
other values and must draw a mask of its own. Two generators, then, and neither is torch's default
one, which thus stays equal on all ranks. Megatron-LM: `CudaRNGStatesTracker` in
`megatron/core/tensor_parallel/random.py`.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from minimegatron.ranks.ledger import current_phase
from minimegatron.ranks.mesh import Mesh

AGAIN = " again"


class DropoutStreams:
    """The generators `same` and `different` of one rank, made from `seed`.

    `same` draws equal numbers along tp and other ones on each rank of dp, cp and pp; `different`
    draws its own on every rank. `record`, if a list, is what the layers give to `dropout`.
    """

    def __init__(self, mesh: Mesh, seed: int) -> None:
        replica = (mesh.dp.rank, mesh.cp.rank, mesh.pp.rank)
        self.same = _generator(mesh, (seed, "same", *replica))
        self.different = _generator(mesh, (seed, "different", *replica, mesh.tp.rank))
        self.record: list[tuple[str, Tensor]] | None = None

    def states(self) -> tuple[Tensor, Tensor]:
        """Where both streams are now."""
        return self.same.get_state(), self.different.get_state()

    def restore(self, states: tuple[Tensor, Tensor]) -> None:
        """Put both streams back to where they were: they draw the same numbers again."""
        for generator, state in zip((self.same, self.different), states, strict=True):
            generator.set_state(state)


def _generator(mesh: Mesh, key: tuple[int | str, ...]) -> torch.Generator:
    # A hash, so that neighbouring seeds and ranks do not give neighbouring generators.
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(mesh.device).manual_seed(int.from_bytes(digest[:4]))


def dropout(
    x: Tensor, p: float, generator: torch.Generator, training: bool = True, *, site: str = "",
    record: list[tuple[str, Tensor]] | None = None,
) -> Tensor:  # fmt: skip
    """`x` with each value zeroed with probability `p` and the others scaled by 1/(1-p).

    Any shape. The mask comes from `generator`; `record`, if a list, gets (site, mask), the mask
    true where a value was kept (in backward the site ends in " again"). Outside training, or with
    p=0, `x` itself and nothing is drawn.
    """
    if not training or p == 0.0:
        return x
    kept = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    kept.bernoulli_(1.0 - p, generator=generator)
    if record is not None:
        again = AGAIN if current_phase() in ("recompute", "backward") else ""
        record.append((site + again, kept))
    return x * kept * (1.0 / (1.0 - p))
