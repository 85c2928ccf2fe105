"""Text to token ids and back: bytes, or byte-level BPE learnt from the text itself.

Byte-level BPE is GPT-2's way (section 2.2 of its paper): start from the 256 bytes, so that any text
can be written, and make the most frequent pair of neighbours a token, again and again. Megatron-LM:
`GPT2BPETokenizer`, with a vocabulary made in advance; here it is made once, in about a second.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


class TextTokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class ByteTokenizer:
    """Every byte of the UTF-8 text is a token: nothing to learn, sequences three times as long."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


class BPETokenizer:
    """Byte-level BPE as in GPT-2: frequent pairs of tokens become one token."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()

    @classmethod
    def trained(cls, text: str, vocab_size: int = 1024, cache: Path | None = None) -> BPETokenizer:
        """Learns at most `vocab_size` tokens from `text`, or reads what an earlier call learnt.

        Kept in `cache` (default: the user's cache folder), under a name made of text and size. A
        cache that cannot be read or written costs the second or so that learning takes, no more.
        """
        if vocab_size < 256:
            raise ValueError(f"vocab_size={vocab_size}: byte-level BPE begins with the 256 bytes")
        key = hashlib.sha256(f"{vocab_size}\n{text}".encode()).hexdigest()[:32]
        file = (cache or cache_folder()) / f"bpe-{key}.json"
        try:
            return cls(Tokenizer.from_str(file.read_text(encoding="utf-8")))
        except Exception:  # absent, unreadable or damaged (tokenizers raises plain Exception)
            pass
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
        write_atomically(file, tokenizer.to_str())
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))


def cache_folder() -> Path:
    """Where things made once are kept: $XDG_CACHE_HOME/minimegatron or ~/.cache/minimegatron."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "minimegatron"


def write_atomically(file: Path, text: str) -> None:
    """Ranks may write the same file at the same time: each writes its own and renames it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(temporary, file)
    except OSError:
        pass  # a cache that cannot be written is no reason to fail
