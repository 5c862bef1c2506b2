"""Keyed randomness: independent streams, and generators restored exactly (C8)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from dataporter.seeding import numpy_state, python_state, torch_state
from dataporter.seeding.generators import (
    GENERATORS,
    NUMPY,
    PYTHON,
    GlobalGenerator,
    isolated_generators,
    saved_generators,
    seed_generators,
)
from dataporter.seeding.hashing import fold, mix, sample_key, sample_keys

WORDS = st.integers(0, 2**63 - 1)


def drawing(python: Any, from_numpy: Any, from_torch: Any) -> Callable[[GlobalGenerator], Any]:
    by_generator = {PYTHON: python, NUMPY: from_numpy}
    return lambda generator: by_generator.get(generator, from_torch)()


DRAWS = {
    "a number": drawing(random.random, np.random.rand, lambda: torch.rand(())),
    "a normal number": drawing(
        lambda: random.gauss(0, 1), np.random.standard_normal, lambda: torch.randn(())
    ),
    # After so many a Mersenne Twister stands at the same place, with other words.
    "624 words": drawing(
        lambda: [random.getrandbits(32) for _ in range(624)],
        lambda: np.random.bytes(624 * 4),
        lambda: torch.randint(0, 2**31, (624,)),
    ),
    "nothing": drawing(lambda: None, lambda: None, lambda: None),
}


def states() -> tuple[object, ...]:
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()


def draw() -> tuple[float, ...]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@given(seed=WORDS, epoch=st.integers(0, 10**6), start=st.integers(0, 2**62))
def test_the_keys_of_an_epoch_are_all_different(seed: int, epoch: int, start: int) -> None:
    positions = np.arange(start, start + 2000)
    keys = sample_keys(seed, epoch, positions)
    assert len(np.unique(keys)) == 2000
    assert sample_keys(seed, epoch, positions[5:6])[0] == keys[5], "alone or in a batch"
    assert [sample_key(seed, epoch, start + offset) for offset in range(20)] == keys[:20].tolist()


@given(words=st.lists(WORDS, min_size=1, max_size=4), bit=st.integers(0, 62), data=st.data())
def test_every_bit_of_every_word_changes_the_hash(
    words: list[int], bit: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(words) - 1))
    changed = list(words)
    changed[index] ^= 1 << bit
    assert fold(*words) != fold(*changed)
    assert 0 <= fold(*words) < 2**64


def test_the_order_of_the_words_matters() -> None:
    assert fold(1, 2) != fold(2, 1)


def test_mix_is_a_bijection_with_even_bits() -> None:
    words = mix(np.arange(40_000, dtype=np.uint64))
    assert len(np.unique(words)) == 40_000
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).sum(axis=0)
    statistic = ((ones - 20_000) ** 2 / 10_000).sum()
    assert chi2.sf(statistic, 64) > 1e-5


@given(key=st.integers(0, 2**64 - 1))
def test_seeding_determines_all_three_generators(key: int) -> None:
    with isolated_generators():
        seed_generators(key)
        first = draw()
        seed_generators(key)
        assert draw() == first


@pytest.mark.parametrize("kept_normal", [False, True])
@given(seed=st.integers(0, 2**32 - 1), draws=st.integers(0, 700), normals=st.integers(0, 3))
def test_isolation_restores_every_bit_of_state(
    kept_normal: bool, seed: int, draws: int, normals: int
) -> None:
    """Including the second of a pair of normal numbers, which NumPy keeps for the next call."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    np.random.random_sample(draws)
    if kept_normal:
        np.random.standard_normal()
        random.gauss(0, 1)
    before = states()
    with isolated_generators():
        seed_generators(seed + 1)
        draw()
        np.random.standard_normal(normals)
        random.gauss(0, 1)
    assert states() == before


@pytest.mark.parametrize("make", [np.random.PCG64, np.random.Philox, np.random.MT19937])
def test_a_different_bit_generator_behind_numpy_random_is_restored(
    make: Callable[[int], np.random.BitGenerator],
) -> None:
    ours = np.random.get_bit_generator()
    np.random.set_bit_generator(make(5))
    try:
        before = repr(np.random.get_state(legacy=False))
        state = numpy_state.save()
        np.random.rand(3)
        numpy_state.restore(state)
        assert repr(np.random.get_state(legacy=False)) == before
    finally:
        np.random.set_bit_generator(ours)


@pytest.mark.parametrize("make", [np.random.PCG64, np.random.Philox, np.random.SFC64])
def test_seeding_determines_a_different_bit_generator(
    make: Callable[[int], np.random.BitGenerator],
) -> None:
    ours = np.random.get_bit_generator()
    np.random.set_bit_generator(make(5))
    try:
        before = repr(np.random.get_state(legacy=False))
        with isolated_generators():
            seed_generators(7 << 32)
            first = draw()
            seed_generators(7 << 32)
            assert draw() == first
            seed_generators(8 << 32)
            assert draw() != first
        assert repr(np.random.get_state(legacy=False)) == before
    finally:
        np.random.set_bit_generator(ours)


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.name)
@given(seed=st.integers(0, 2**64 - 1), draws=st.lists(st.sampled_from(sorted(DRAWS)), max_size=5))
def test_a_saved_state_shows_every_draw_and_returns_all_of_it(
    generator: GlobalGenerator, seed: int, draws: list[str]
) -> None:
    with isolated_generators():
        generator.seed(seed)
        DRAWS["a normal number"](generator)  # of a pair, whose second may be kept
        before, known = generator.save(), states()
        assert generator.save() == before
        for draw_some in draws:
            DRAWS[draw_some](generator)
        assert (generator.save() == before) == (states() == known)
        generator.restore(before)
        assert states() == known
        assert generator.save() == before


@pytest.mark.parametrize("version", ["python", "numpy", "torch"])
def test_a_state_that_is_no_memory_is_saved_by_public_functions(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a Python, NumPy or torch of another memory layout, which no release so far has."""
    if version == "python":
        monkeypatch.setattr(python_state, "_WORDS", None)
    elif version == "torch":
        monkeypatch.setattr(torch_state, "_MEMORY", None)
    else:
        monkeypatch.setattr(numpy_state, "_KEPT", None)
        monkeypatch.setattr(numpy_state, "_last", (None, None))
    before = states()
    with isolated_generators():
        seed_generators(3)
        saved = saved_generators()
        assert saved_generators() == saved
        for generator in GENERATORS:
            DRAWS["a normal number"](generator)
        assert [now == was for now, was in zip(saved_generators(), saved)] == [False] * 3
    assert states() == before
    numpy_state._last = (None, None)


def test_this_python_numpy_and_torch_have_the_known_memory_layout() -> None:
    assert torch_state._MEMORY is not None
    assert python_state._WORDS is not None
    assert numpy_state._KEPT is not None
