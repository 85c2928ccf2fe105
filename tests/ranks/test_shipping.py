"""The learner's own modules: found, as the kernel knows them, and read again when edited."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

import minimegatron as mm
from minimegatron.ranks import shipping


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A module beside the notebook; returns a function that writes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text):
        (tmp_path / "beside_me.py").write_text(text)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("beside_me", None)


def test_an_edited_module_is_seen_by_the_next_call(beside):
    beside("def value():\n    return 1\n")
    import beside_me
    from beside_me import value

    def inside(mesh):
        import beside_me

        return beside_me.value()

    assert mm.launch(lambda mesh: beside_me.value(), tp=2) == [1, 1]
    assert mm.launch(inside, tp=2) == [1, 1]
    beside("def value():\n    return 2\n")  # as long as before, within the same second
    assert mm.launch(inside, tp=2) == [2, 2]
    assert mm.launch(lambda mesh: beside_me.value(), tp=2) == [2, 2]
    assert mm.launch(lambda mesh: value(), tp=2) == [2, 2]
    importlib.reload(beside_me)
    assert mm.launch(lambda mesh: beside_me.value(), tp=2) == [2, 2]


def test_an_unedited_module_travels_as_the_kernel_knows_it(beside):
    beside("SCALE = 1\n\ndef value():\n    return SCALE\n")
    import beside_me

    beside_me.SCALE = 5
    assert mm.launch(lambda mesh: beside_me.value(), tp=2) == [5, 5]


def test_a_module_that_holds_a_lock_is_imported_by_the_ranks(beside):
    beside("import threading\nLOCK = threading.Lock()\n\ndef value():\n    return LOCK.locked()\n")
    import beside_me

    assert mm.launch(lambda mesh: beside_me.value(), tp=2) == [False, False]


def test_an_instance_of_a_modules_class_comes_back_as_that_class(beside):
    beside("class Thing:\n    pass\n")
    import beside_me

    assert isinstance(mm.launch(lambda mesh: beside_me.Thing())[0], beside_me.Thing)


def test_a_missing_module_is_the_ranks_error(beside):
    def fn(mesh):
        import there_is_no_such_module  # noqa: F401

    with pytest.raises(mm.RankError, match="there_is_no_such_module"):
        mm.launch(fn, tp=2)


def test_tensors_arrive_on_the_device_of_the_rank():
    """ "meta" stands for a GPU: the same path, on a machine without one."""
    packed = shipping.pack_call({"x": torch.ones(2, 3), "n": 3})
    there = shipping.unpack(packed, torch.device("meta"))
    assert there["x"].device.type == "meta" and there["x"].shape == (2, 3) and there["n"] == 3
    assert shipping.unpack(packed)["x"].device.type == "cpu"
