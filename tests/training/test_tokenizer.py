"""Tokenizers: nothing is lost, and what is made once is found again."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimegatron.training import tokenizer as module
from minimegatron.training.tokenizer import BPETokenizer, ByteTokenizer

TEXT = "the cat sat on the mat; the dog sat on the log\n" * 20


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return BPETokenizer.trained(TEXT, 300, cache=tmp_path_factory.mktemp("cache"))


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_comes_back_even_one_never_seen(bpe, text):
    for tokenizer in (bpe, ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_bpe_learns_from_its_text_up_to_the_size_asked_for(bpe):
    assert 256 < bpe.vocab_size <= 300
    assert len(bpe.encode(TEXT)) < 0.7 * len(ByteTokenizer().encode(TEXT))


def test_what_was_learnt_is_read_again_and_not_learnt_again(tmp_path, monkeypatch):
    first = BPETokenizer.trained(TEXT, 300, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(module.trainers, "BpeTrainer", None)  # learning would fail now
    assert BPETokenizer.trained(TEXT, 300, cache=tmp_path).encode(TEXT) == first.encode(TEXT)
    monkeypatch.undo()
    BPETokenizer.trained(TEXT + "!", 300, cache=tmp_path)
    BPETokenizer.trained(TEXT, 290, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # another text or size is another tokenizer
    assert file.exists()


def test_a_damaged_cache_is_made_anew(tmp_path):
    first = BPETokenizer.trained(TEXT, 300, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text("{ damaged")
    assert BPETokenizer.trained(TEXT, 300, cache=tmp_path).encode(TEXT) == first.encode(TEXT)
    assert file.read_text() != "{ damaged"


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file, where a folder should be")
    assert BPETokenizer.trained(TEXT, 300, cache=blocked / "cache").vocab_size > 256


def test_the_cache_lies_in_the_users_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.cache_folder() == tmp_path / "minimegatron"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    if os.name == "posix":
        assert module.cache_folder() == tmp_path / ".cache" / "minimegatron"


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=100: .* 256 bytes"):
        BPETokenizer.trained(TEXT, 100)
