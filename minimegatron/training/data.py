"""A tokenized text, its batches, and their division over ranks.

Every rank can form the *global* batch of a step from (seed, step) alone and takes its part of it,
so the same sequences are seen at every split and nothing is sent. Megatron-LM builds index files
once and lets tensor-parallel rank 0 broadcast each batch (`get_batch_on_this_tp_rank`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from minimegatron.models.config import GPTConfig
from minimegatron.training.tokenizer import BPETokenizer, ByteTokenizer, TextTokenizer


@dataclass(frozen=True)
class Corpus:
    """A tokenized text in a training and a validation part, each (tokens,) int64."""

    tokenizer: TextTokenizer
    train: Tensor
    validation: Tensor

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def batch(self, step: int, size: int, seq_length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The global batch of a step: tokens and targets (size, seq), the same on every rank."""
        digest = hashlib.sha256(f"batch {seed} {step}".encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
        last = len(self.train) - seq_length
        starts = torch.randint(last, (size,), generator=generator, device="cpu")
        return windows(self.train, starts, seq_length)

    def validation_batch(self, size: int, seq_length: int) -> tuple[Tensor, Tensor]:
        """`size` windows spread evenly over the validation part: always the same ones."""
        last = len(self.validation) - seq_length - 1
        return windows(
            self.validation, torch.linspace(0, last, size, device="cpu").long(), seq_length
        )

    def unigram_entropy(self) -> float:
        """Nats per token of a model that knows only how frequent each token is.

        The cross entropy of the validation part under the (add-one smoothed) frequencies of the
        training part: what a language model must get below to have learnt any context at all.
        """
        counts = torch.bincount(self.train, minlength=self.vocab_size).double() + 1
        return float(-(counts / counts.sum()).log()[self.validation].mean())


def windows(tokens: Tensor, starts: Tensor, seq_length: int) -> tuple[Tensor, Tensor]:
    """Sequences from `starts` and the same shifted by one, (len(starts), seq) each."""
    index = starts[:, None] + torch.arange(seq_length, device=starts.device)
    return tokens[index], tokens[index + 1]


def make_corpus(
    text: str, seq_length: int, tokenizer: str = "bpe", vocab_size: int = 1024
) -> Corpus:
    """Tokenizes `text` ("bpe" or "bytes"); the last tenth of each tenth of it is for validation.

    Stretches from all over the text make the two parts alike; BPE learns from the training part
    alone. Raises ValueError when a part has no room for one sequence and the token after it.
    """
    if tokenizer not in ("bpe", "bytes"):
        raise ValueError(f"tokenizer={tokenizer!r}: use 'bpe' or 'bytes'")
    stretches = [text[slice_of(len(text), 10, i)] for i in range(10)]
    training = [s[: len(s) - len(s) // 10] for s in stretches]
    validation = [s[len(s) - len(s) // 10 :] for s in stretches]
    made: TextTokenizer
    if tokenizer == "bytes":
        made = ByteTokenizer()
    else:
        made = BPETokenizer.trained("".join(training), vocab_size)
    parts = [
        torch.tensor([t for piece in part for t in made.encode(piece)], dtype=torch.int64)
        for part in (training, validation)
    ]
    for name, part in zip(("training", "validation"), parts, strict=True):
        if len(part) < seq_length + 1:
            raise ValueError(
                f"the text is too short: its {name} part has {len(part)} tokens, one sequence and "
                f"the token after it need {seq_length + 1}; give more text or a shorter sequence"
            )
    return Corpus(made, *parts)


def check_split(config: GPTConfig, tp: int, dp: int, batch: int, microbatches: int) -> None:
    """ValueError, before any rank starts, where model or batch cannot be divided like this."""
    if min(tp, dp, microbatches) < 1:
        raise ValueError(f"tp={tp}, dp={dp}, microbatches={microbatches}: each is at least 1")
    if config.num_heads % tp:
        raise ValueError(f"num_heads {config.num_heads} does not divide by tp={tp}")
    if config.sequence_parallel and config.seq_length % tp:
        raise ValueError(
            f"with sequence_parallel, seq_length {config.seq_length} does not divide by tp={tp}"
        )
    if batch < dp * microbatches:
        raise ValueError(
            f"batch={batch} is too small: dp={dp} x microbatches={microbatches} need "
            f"{dp * microbatches} sequences"
        )


def slice_of(total: int, parts: int, index: int) -> slice:
    """Part `index` of `total` things in `parts` almost equal parts, in order."""
    return slice(index * total // parts, (index + 1) * total // parts)
