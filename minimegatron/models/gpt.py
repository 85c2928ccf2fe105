"""GPT, split over tensor-parallel ranks from the embedding to the loss.

Section 3 of arXiv:1909.08053: the word embedding is split by vocabulary, and the output product,
which uses the same matrix, by columns of it; the loss is computed on the split logits. Between them
every activation outside attention and MLP is whole and equal on every rank, or, with sequence
parallelism (arXiv:2205.05198, section 4.2.2), split along the sequence. Megatron-LM:
`megatron/core/models/gpt/gpt_model.py`, class `GPTModel`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimegatron.data_parallel.gradients import Reducer
from minimegatron.data_parallel.zero import Zero
from minimegatron.models import sharding
from minimegatron.models.config import GPTConfig
from minimegatron.models.transformer import TransformerLayer
from minimegatron.models.weights import draw_seed, initial
from minimegatron.ranks.ledger import phase
from minimegatron.ranks.mesh import Axis, Mesh, single
from minimegatron.tensor_parallel.dropout import DropoutStreams, dropout
from minimegatron.tensor_parallel.linear import ColumnParallelLinear, column_parallel
from minimegatron.tensor_parallel.recompute import recompute
from minimegatron.tensor_parallel.shards import divide, padded, shard_of
from minimegatron.tensor_parallel.vocabulary import (
    VocabParallelEmbedding,
    vocab_parallel_cross_entropy,
)

IGNORED = -100  # the target that counts for nothing, torch's default too


def spread(layers: int, p: int, chunks: int, given: Sequence[int] | None = None) -> list[range]:
    """The layers of each of the p * chunks stages: equally many, or as many as `given` lists."""
    if chunks < 1:
        raise ValueError(f"chunks={chunks}: a rank holds at least 1")
    stages = p * chunks
    if given is None and layers % stages:
        raise ValueError(
            f"num_layers {layers} does not divide by pp={p} x chunks={chunks} stages: "
            "layers_per_stage=[...] spreads them unevenly"
        )
    counts = [layers // stages] * stages if given is None else list(given)
    if len(counts) != stages or sum(counts) != layers or min(counts) < 1:
        raise ValueError(
            f"layers_per_stage={counts}: {stages} stages of at least 1 layer have {layers} in all"
        )
    return [range(sum(counts[:i]), sum(counts[: i + 1])) for i in range(stages)]


class Embedding(nn.Module):
    """Word and position embeddings added: tokens (batch, seq) -> (batch, seq, hidden).

    With `config.sequence_parallel` (batch, seq/tp, hidden).
    """

    def __init__(self, config: GPTConfig, axis: Axis) -> None:
        super().__init__()
        self.sequence_parallel, self.axis = config.sequence_parallel, axis
        hidden = config.hidden_size
        self.word = VocabParallelEmbedding(config.vocab_size, hidden, axis, self.sequence_parallel)
        self.position = nn.Embedding(config.seq_length, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.position.weight[: tokens.shape[1]]
        if self.sequence_parallel:
            positions = shard_of(positions, self.axis)
        return self.word(tokens) + positions


class GPT(nn.Module):
    """A GPT on a mesh; without one, in this process. Initial weights depend on the seed only.

    One number is drawn from torch's generator, whatever the split (its state must be the same on
    every rank, as `mm.launch` leaves it); parameters have torch's default dtype. `model.streams`
    are its dropout streams; `tokens_since_finish` the number of targets that `loss` has seen since
    gradients were last finished.

    With pp > 1 a rank holds `chunks` of the pp * chunks stages, rank, pp + rank...: some of the
    layers, the embedding on the first stage, the head (a copy of the embedding, if they are tied)
    on the last. `layers_per_stage` lists how many layers each stage has, where they are not to be
    spread evenly. Raises ValueError where heads, or with sequence parallelism `seq_length`, do not
    divide by tp, and layers not by the stages.
    """

    def __init__(
        self,
        config: GPTConfig,
        mesh: Mesh | None = None,
        chunks: int = 1,
        layers_per_stage: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.mesh = config, mesh or single()
        self.chunks = chunks
        self.layers_of = spread(config.num_layers, self.mesh.pp.size, chunks, layers_per_stage)
        if config.sequence_parallel:
            divide(config.seq_length, self.mesh.tp, "with sequence_parallel, seq_length")
        self.tokens_since_finish: int | Tensor = 0
        self.gradient_reducer: Reducer | None = None
        self.zero: Zero | None = None
        seed = draw_seed()
        self.streams = DropoutStreams(self.mesh, seed)
        # The layers draw as much as their shards need; none of it may show outside.
        device = self.mesh.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
            self._build(config, self.mesh.tp)
        for name, parameter in self.named_parameters():
            shape = sharding.dense_shape(name, parameter, self.mesh.tp, config.vocab_size)
            self._fill(name, parameter, initial(self.dense_name(name), shape, config, seed))

    def _build(self, config: GPTConfig, axis: Axis) -> None:
        mine = [self._stage_number(chunk) for chunk in range(self.chunks)]
        first, last = 0 in mine, len(self.layers_of) - 1 in mine
        if first:
            self.embedding = Embedding(config, axis)
        # Keyed by the layer's number in the whole model: a pipeline stage holds only some.
        self.layers = nn.ModuleDict(
            {
                str(i): TransformerLayer(config, axis, self.streams, f"layers.{i}")
                for stage in mine
                for i in self.layers_of[stage]
            }
        )
        if last and config.layer_norm == "pre":
            self.final_norm = nn.LayerNorm(config.hidden_size)
        if last and not (config.tie_embeddings and first):
            size = padded(config.vocab_size, axis)
            self.head = ColumnParallelLinear(
                config.hidden_size, size, axis, bias=False,
                sequence_parallel=config.sequence_parallel, keep_gathered=config.keep_gathered,
            )  # fmt: skip

    def _stage_number(self, chunk: int) -> int:
        return chunk * self.mesh.pp.size + self.mesh.pp.rank

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, seq) -> logits (batch, seq, padded vocabulary/tp).

        Raises ValueError for tokens of another shape or more than `seq_length` of them (with
        sequence parallelism also where seq does not divide by tp), IndexError for one outside the
        vocabulary, RuntimeError on pp > 1.
        """
        if self.mesh.pp.size > 1:
            raise RuntimeError(
                f"on pp={self.mesh.pp.size} a rank holds a part of the layers and cannot run the "
                "model alone: use mm.run_schedule(model, schedule, microbatches)"
            )
        x = tokens
        for chunk in range(self.chunks):
            x = self.stage(chunk, x)
        return x

    def stage(self, chunk: int, x: Tensor) -> Tensor:
        """One stage of the pipeline: activations (batch, seq, hidden) in and out.

        The first takes tokens (batch, seq), the last gives logits (batch, seq, padded
        vocabulary/tp). With sequence parallelism activations are (batch, seq/tp, hidden).
        """
        number = self._stage_number(chunk)
        if number == 0:
            x = self._embed(x)
        again = self.config.recompute == "full"
        for layer in (self.layers[str(i)] for i in self.layers_of[number]):
            x = recompute(layer, self.streams, x) if again else layer(x)
        return x if number < len(self.layers_of) - 1 else self._logits(x)

    def _embed(self, tokens: Tensor) -> Tensor:
        config, split = self.config, self.config.sequence_parallel
        if tokens.dim() != 2:
            raise ValueError(f"tokens have the shape (batch, seq), not {tuple(tokens.shape)}")
        if tokens.shape[1] > config.seq_length:
            raise ValueError(
                f"a sequence of {tokens.shape[1]} tokens is longer than seq_length "
                f"{config.seq_length}"
            )
        if split:
            divide(tokens.shape[1], self.mesh.tp, "with sequence_parallel, a sequence of")
        return dropout(
            self.embedding(tokens), config.dropout,
            self.streams.different if split else self.streams.same, self.training,
            site="embedding", record=self.streams.record,
        )  # fmt: skip

    def _logits(self, x: Tensor) -> Tensor:
        config = self.config
        if config.layer_norm == "pre":
            x = self.final_norm(x)
        if hasattr(self, "head"):
            logits: Tensor = self.head(x)
            return logits
        weight, split = self.embedding.word.weight, config.sequence_parallel
        return column_parallel(x, weight, None, self.mesh.tp, split, config.keep_gathered)

    def activations(self, tokens: Tensor) -> Tensor:
        """An empty tensor of the shape and dtype that travels between stages for these tokens."""
        parts = self.mesh.tp.size if self.config.sequence_parallel else 1
        shape = (tokens.shape[0], tokens.shape[1] // parts, self.config.hidden_size)
        return torch.empty(shape, dtype=next(self.parameters()).dtype, device=self.mesh.device)

    def modules_of(self, chunk: int) -> list[nn.Module]:
        """The modules of one of this rank's stages."""
        number = self._stage_number(chunk)
        modules = [m for i in self.layers_of[number] for m in self.layers[str(i)].modules()]
        last = number == len(self.layers_of) - 1
        return [*modules, self.head] if last and hasattr(self, "head") else modules

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean cross entropy, in nats, over the targets other than -100 (0 if there are none).

        `tokens` and `targets` (batch, seq) -> a scalar, the same on every tp rank.
        """
        loss = self.mean_loss(self(tokens), targets)
        if torch.is_grad_enabled():
            self.tokens_since_finish = self.tokens_since_finish + (targets != IGNORED).sum()
        return loss

    def mean_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`loss` from the logits; counts no tokens."""
        per_token = vocab_parallel_cross_entropy(
            logits, targets, self.mesh.tp, vocab_size=self.config.vocab_size, ignore_index=IGNORED
        )
        return per_token.sum() / (targets != IGNORED).sum().clamp(min=1)

    def dense_name(self, name: str) -> str:
        """A parameter's name in the whole model: a tied head on a stage of its own is a copy."""
        copied = name == "head.weight" and self.config.tie_embeddings
        return "embedding.word.weight" if copied else name

    def dense_names(self) -> list[str]:
        """The names of all parameters of the whole model, in order."""
        number, layer = next(iter(self.layers.items()))
        inside = [name for name, _ in layer.named_parameters()]
        names = ["embedding.word.weight", "embedding.position.weight"]
        names += [f"layers.{i}.{name}" for i in range(self.config.num_layers) for name in inside]
        if self.config.layer_norm == "pre":
            names += ["final_norm.weight", "final_norm.bias"]
        return names if self.config.tie_embeddings else [*names, "head.weight"]

    def tied_copy(self) -> nn.Parameter | None:
        """This rank's word embedding, where the first and the last stage hold a copy each."""
        if self.mesh.pp.size > 1 and self.config.tie_embeddings:
            for name, parameter in self.named_parameters():
                if self.dense_name(name) == "embedding.word.weight":
                    return parameter
        return None

    def is_sharded(self, name: str) -> bool:
        """Whether the parameter of this name is split over tp (whole on every rank otherwise)."""
        return sharding.split_of(name) is not None

    def is_partial(self, name: str) -> bool:
        """Whether its gradient lacks the other tp ranks' tokens until `finish_gradients`.

        So with sequence parallelism for whatever is whole on every rank: layer norms, biases after
        a row split, position embeddings.
        """
        return self.config.sequence_parallel and not self.is_sharded(name)

    def full_state_dict(self) -> dict[str, Tensor]:
        """The dense parameters by name, the same at every split, on every rank: collective."""
        with self._whole():
            return self._full({name: p.detach() for name, p in self.named_parameters()})

    def full_gradients(self) -> dict[str, Tensor]:
        """The dense gradients by name (zeros where there is none), on every rank: collective."""
        shared = self.zero.whole_gradients() if self.zero else {}
        found = {}
        for name, p in self.named_parameters():
            gradient = shared.get(p, p.grad)
            found[name] = torch.zeros_like(p) if gradient is None else gradient
        return self._full(found)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """torch's, and ZeRO's shards."""
        super().zero_grad(set_to_none)
        if self.zero:
            self.zero.zero_grad()

    def _whole(self) -> contextlib.AbstractContextManager[None]:
        return self.zero.whole() if self.zero else contextlib.nullcontext()

    def _full(self, shards: dict[str, Tensor]) -> dict[str, Tensor]:
        axis, size = self.mesh.tp, self.config.vocab_size
        with phase("other"):
            mine = {
                self.dense_name(name): sharding.join(name, t, axis, size)
                for name, t in shards.items()
            }
            whole = sharding.join_stages(mine, self.mesh.pp)
        return {name: whole[name] for name in self.dense_names()}

    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this rank's part of each dense tensor, as `full_state_dict` gives them.

        Raises ValueError for missing or unexpected names and for wrong shapes; nothing is changed
        then.
        """
        mine, names = dict(self.named_parameters()), set(self.dense_names())
        missing, unexpected = sorted(names - state.keys()), sorted(state.keys() - names)
        if missing or unexpected:
            raise ValueError(f"the state lacks {missing} and has unexpected {unexpected}")
        for name, parameter in mine.items():
            shape = sharding.dense_shape(name, parameter, self.mesh.tp, self.config.vocab_size)
            given = tuple(state[self.dense_name(name)].shape)
            if given != shape:
                raise ValueError(f"{name} has the shape {given} in the state, {shape} in the model")
        with self._whole():
            for name, parameter in mine.items():
                self._fill(name, parameter, state[self.dense_name(name)])

    def _fill(self, name: str, parameter: nn.Parameter, dense: Tensor) -> None:
        part = sharding.take(name, dense, self.mesh.tp)
        if part.shape != parameter.shape:  # copy_ would spread a smaller one in silence
            raise ValueError(
                f"{name} has the shape {tuple(parameter.shape)} on this rank, not "
                f"{tuple(part.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(part)

    @classmethod
    def from_huggingface(cls, model_or_path: Any | str | Path, mesh: Mesh | None = None) -> GPT:
        """The GPT-2 of a transformers GPT2LMHeadModel, or of a folder holding one, split over tp.

        Keeps its dtype, and its train or eval mode (a folder's is eval). Raises ValueError for a
        model that is not GPT-2 as we build it, FileNotFoundError for a folder without one.
        """
        from minimegatron.models.huggingface import read  # few need it

        config, state, training = read(model_or_path)
        before = torch.get_default_dtype()
        torch.set_default_dtype(state["final_norm.weight"].dtype)
        try:
            model = cls(config, mesh)
        finally:
            torch.set_default_dtype(before)
        model.load_full_state_dict(state)
        return model.train(training)
