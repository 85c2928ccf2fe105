"""Text from files and folders, and clear errors where there is none."""

from __future__ import annotations

import sys

import pytest

from minimegatron.training import text
from minimegatron.training.text import default_text, read_text


def test_the_default_text_is_there_and_repeats_no_section():
    sections = default_text().split("\n\n")
    assert len(default_text()) > 200_000
    assert len(sections) == len(set(sections))


def test_docstrings_stand_in_where_a_build_lacks_the_topics(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # importing it fails now
    assert len(default_text()) > 100_000
    assert "Return" in default_text()


def test_a_file_is_read_as_utf8_with_or_without_its_mark(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.txt").write_text("grüße, 世界", encoding=encoding)
        assert read_text(tmp_path / "a.txt") == "grüße, 世界"


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "sub" / "c.py").write_text("third")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    assert read_text(tmp_path) == "first\n\nsecond\n\nthird"


def test_files_of_a_folder_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\xff")
    with pytest.warns(UserWarning, match="1 files hold no UTF-8 text: b.png"):
        assert read_text(tmp_path) == "text"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nothing.txt cannot be read: No such file"),
        (b"", "nothing.txt holds no text"),
        (b" \n\t", "nothing.txt holds no text"),
        (b"caf\xe9", "nothing.txt is not UTF-8 text: byte 3 is 0xe9"),
    ],
)
def test_a_file_without_text_is_a_clear_error(tmp_path, content, message):
    file = tmp_path / "nothing.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(file)


def test_a_folder_without_text_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="holds no file with UTF-8 text"):
        read_text(tmp_path)


def test_a_file_that_may_not_be_read_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(text.Path, "read_text", refuse)  # root may read everything
    with pytest.raises(ValueError, match="a.txt cannot be read: Permission denied"):
        read_text(tmp_path / "a.txt")
