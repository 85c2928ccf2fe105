from __future__ import annotations

import pytest
import torch
from matplotlib.axes import Axes

from minimegatron import figures
from minimegatron.figures.numbers import FORMATS, REGIONS, binades


def test_the_bits_of_every_format_are_those_that_torch_says() -> None:
    for dtype, (exponent, fraction) in FORMATS.items():
        info = torch.finfo(dtype)
        assert 1 + exponent + fraction == info.bits
        assert 2.0**-fraction == info.eps


def test_the_picture_names_bits_and_reach(drawn: list[Axes]) -> None:
    picture = figures.number_formats(torch.bfloat16, torch.float16)
    assert "bf16: 8 bits of exponent, 7 of fraction" in picture.alt
    assert "all digits from 2^-14 to 2^16, fewer down to 2^-24" in picture.alt
    assert {"bf16", "fp16", "5", "10"} <= {text.get_text() for text in drawn[0].texts}


def test_regions_are_what_casting_to_fp16_does() -> None:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-30, 20, (4000,), generator=generator)
    numbers = (1 + torch.rand(4000, generator=generator, dtype=torch.float64)) * 2.0**exponents
    cast = numbers.half().double()
    lost = {
        "become 0": cast == 0,
        "become inf": cast.isinf(),
        "lose digits": (cast != 0) & (numbers < 2.0**-14),
    }
    lost["keep all digits"] = ~(lost["become 0"] | lost["become inf"] | lost["lose digits"])
    alt = figures.fp16_line("Line", {"numbers": -numbers}).alt
    # Halves that round up to the smallest or the next power of two are a rounding of the percent.
    for name, _, _ in REGIONS:
        share = f"{float(lost[name].double().mean()):.0%} {name}"
        assert share in alt, (share, alt)


def test_binades_count_by_powers_of_two_and_leave_zeros_out() -> None:
    numbers = torch.tensor([0.0, 1.0, 1.99, -1.5, 2.0, 0.5, 2.0**-40])
    assert binades(numbers) == {0: 3, 1: 1, -1: 1, -40: 1}


def test_the_slider_moves_every_gradient_by_whole_powers_of_two() -> None:
    gradients = {"g": torch.tensor([2.0**-30, 2.0**-20, 2.0**-3, 1.0])}
    explorer = figures.explore_loss_scale(gradients)
    assert "25% become 0, 25% lose digits, 50% keep all digits" in explorer.first.alt
    explorer.controls["scale"].value = 18
    moved = figures.fp16_line("", {"g": gradients["g"] * 2**18}).alt.split("g: ")[1]
    assert moved.startswith("0% become 0, 0% lose digits, 75% keep all digits, 25% become inf")
    assert moved in explorer.picture.value


@pytest.mark.parametrize("rows", [{}, {"a": torch.zeros(3)}, dict.fromkeys("abcde", torch.ones(2))])
def test_what_cannot_be_drawn_is_refused(rows: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="fp16_line draws one to four"):
        figures.fp16_line("Line", rows)


def test_other_formats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"draws torch.float32, .* not \[torch.int8\]"):
        figures.number_formats(torch.int8)
