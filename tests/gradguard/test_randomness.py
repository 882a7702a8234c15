from __future__ import annotations

import numpy as np
import pytest
import torch

from gradguard import randomness
from gradguard.core import State
from gradguard.randomness import fresh_rng, generator, has_randomness, reseeded, seeded_rng


def test_the_state_layout_of_torch_is_the_one_assumed() -> None:
    """After seeding, words 3 to 626 are the Mersenne Twister's init_genrand(seed)."""
    seed = 20201117
    words = torch.Generator().manual_seed(seed).get_state().numpy().view(np.int64)
    expected = [seed]
    for i in range(1, 624):
        previous = expected[-1]
        expected.append((1812433253 * (previous ^ (previous >> 30)) + i) % 2**32)
    assert words[3:627].tolist() == expected
    assert words[:3].tolist() == [seed, (1 << 32) | 1, 0]
    assert words[627:].tolist() == [0] * 5


def test_manual_seed_keeps_32_bits_only() -> None:
    """Why it is not used. Should torch ever mend this, the detour can go."""
    low, high = (torch.Generator().manual_seed(s) for s in (5, 2**40 + 5))
    assert torch.equal(torch.rand(8, generator=low), torch.rand(8, generator=high))


def test_all_624_words_are_filled() -> None:
    states = np.stack([fresh_rng().numpy().view(np.int64)[3:627] for _ in range(64)])
    assert states.min() >= 0
    assert states.max() < 2**32
    bits = np.unpackbits(states.astype(np.uint32).view(np.uint8).reshape(64, 624, 4), axis=-1)
    share = bits.reshape(64, -1).mean(axis=0)  # of ones in each of the 19,968 bits
    assert share.min() > 0.05
    assert share.max() < 0.95


def test_draws_are_those_of_the_twister_with_these_words() -> None:
    """numpy has the same generator: its raw 32-bit outputs are the reference."""
    state = fresh_rng()
    words = state.numpy().view(np.int64)[3:627].astype(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    ours = torch.empty(1000, dtype=torch.int64).random_(0, 2**16, generator=generator(state))
    raw = np.random.Generator(twister).bit_generator.random_raw(1000)
    assert ours.tolist() == (raw % 2**16).tolist()


def test_no_two_fresh_streams_are_equal() -> None:
    assert len({bytes(fresh_rng().numpy()) for _ in range(100)}) == 100


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = fresh_rng()
    torch.manual_seed(0)
    assert not torch.equal(first, fresh_rng())
    assert torch.equal(before, torch.get_rng_state())


def test_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "_layout_checked", False)
    monkeypatch.setattr(randomness, "_WORDS", slice(4, 628))
    with pytest.raises(RuntimeError, match="lays out its CPU generator state differently"):
        fresh_rng()


def test_a_generator_continues_where_its_state_left_off() -> None:
    start = fresh_rng()
    kept = start.clone()
    rng = generator(start)
    torch.randn(7, generator=rng)  # an odd number of normal draws leaves one in the cache
    middle = rng.get_state()
    straight = torch.randn(9, generator=rng)
    assert torch.equal(straight, torch.randn(9, generator=generator(middle)))
    assert torch.equal(start, kept)


def _state() -> State:
    return {"a": {"rng": fresh_rng(), "memory": [torch.ones(2)]}, "rng": fresh_rng(), "n": 3}


def test_reseeding_replaces_every_stream_by_a_different_one_and_nothing_else() -> None:
    state = _state()
    new = reseeded(state, 1)
    assert torch.equal(new["a"]["rng"], seeded_rng(1, path="/a/rng"))
    assert not torch.equal(new["a"]["rng"], new["rng"])
    assert new["a"]["memory"] is state["a"]["memory"]
    assert new["n"] == 3


@pytest.mark.parametrize("seed", [0, -1, 2**200])
def test_seeds_of_any_size_reproduce_and_differ(seed: int) -> None:
    first, second = reseeded(_state(), seed), reseeded(_state(), seed)
    assert torch.equal(first["rng"], second["rng"])
    assert not torch.equal(first["rng"], reseeded(_state(), seed + 2**40)["rng"])


def test_reseeding_without_a_seed_is_fresh() -> None:
    assert not torch.equal(reseeded(_state())["rng"], reseeded(_state())["rng"])


def test_randomness_is_found_at_any_depth() -> None:
    assert has_randomness({"x": {"y": {"rng": 1}}})
    assert not has_randomness({"x": {"y": [1]}})
