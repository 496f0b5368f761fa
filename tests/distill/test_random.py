"""Random numbers are a published hash of their place in the run: pinned bits, moments, independence, invariance."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor

from distill import Random

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as published, in Python's integers."""
    return [mix((state + k * GOLDEN) & MASK) for k in range(1, count + 1)]


def unsigned(bits: Tensor) -> list[int]:
    return [b & MASK for b in bits.flatten().tolist()]


def random(count: int = 1, seed: int = 0, first: int = 0) -> Random:
    return Random.at(seed, torch.arange(first, first + count))


def test_bits_are_those_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert unsigned(Random(torch.tensor([1234567])).bits(4)) == published
    keys = [0, -1, 2**63 - 1, -(2**63), 987654321]
    ours = Random(torch.tensor(keys)).bits(9)
    assert [unsigned(row) for row in ours] == [splitmix64(key & MASK, 9) for key in keys]


def test_keys_by_python_integers() -> None:
    """Seed, index and stream are hashed one after the other; a change here would break the resumption of runs."""
    for seed, index, name in ((0, 0, "time"), (-3, 12, "noise"), (2**40, 10**15, "")):
        key = mix((mix((seed + GOLDEN) & MASK) + index * GOLDEN) & MASK)
        ours = Random.at(seed, torch.tensor([index]))
        assert unsigned(ours.keys) == [key]
        assert unsigned(ours.stream(name).keys) == [mix(key ^ mix((zlib.crc32(name.encode()) + GOLDEN) & MASK))]


def test_uniform_is_open_and_normal_is_finite_at_the_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([[0, -1, 2**63 - 1, -(2**63), 2**32 - 1, -(2**32)]])
    monkeypatch.setattr(Random, "bits", lambda self, count: extremes[:, :count])
    u = random().uniform(6)
    assert float(u.min()) == 2.0**-53
    assert float(u.max()) == 1 - 2.0**-53
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        normal = random().normal(12, dtype=dtype)
        assert normal.dtype == dtype
        assert bool(normal.isfinite().all())
        assert float(normal.abs().max()) == pytest.approx(6.764, abs=0.02)  # sqrt(2 ln 2^33)


def ks_distance(sample: Tensor) -> float:
    """Kolmogorov-Smirnov distance to the uniform law, times sqrt(n): above 1.95 with probability 0.001."""
    ordered, n = sample.flatten().sort().values, sample.numel()
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max()) * n**0.5


LAYOUTS = {
    "elements of one sample": lambda: random().stream("a"),
    "samples": lambda: random(4096).stream("a"),
    "seeds": lambda: Random(torch.cat([Random.at(seed, torch.tensor([0])).keys for seed in range(4096)])),
    "streams": lambda: Random(torch.cat([random().stream(f"s{k}").keys for k in range(4096)])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_are_uniform_normal_and_uncorrelated(layout: str) -> None:
    """Along each axis that tells numbers apart; every threshold is near 1e-3 in probability, and nothing is redrawn."""
    source = LAYOUTS[layout]()
    per = 4096 // len(source.keys)
    uniform, normal = source.uniform(per).flatten(), source.normal(per, dtype=torch.float64).flatten()
    for u in (uniform, torch.special.ndtr(normal)):
        assert ks_distance(u) < 1.95
        u = (u - 0.5) * 12**0.5
        for lag in (1, 2, 3, 64, per // 2 or 1):
            assert abs(float((u[lag:] * u[:-lag]).mean())) * 64 < 3.6
    assert abs(float(normal.mean())) * 64 < 3.3
    assert abs(float((normal**2).mean()) - 1) * 64 < 3.3 * 2**0.5
    assert abs(float((normal**4).mean()) - 3) * 64 < 3.3 * 96**0.5


def test_streams_seeds_and_samples_do_not_share_numbers() -> None:
    keys = [random(1000, seed, first).stream(a).stream(b).keys for seed, first, a, b in (
        (0, 0, "a", "b"), (0, 0, "b", "a"), (0, 0, "a", "a"), (1, 0, "a", "b"), (0, 1000, "a", "b"),
    )]  # fmt: skip
    assert torch.cat([*keys, random(1000).keys, random(1000).stream("a").keys]).unique().numel() == 7000


def test_the_two_halves_of_a_normal_are_independent() -> None:
    cos, sin = random(20_000).normal(2, dtype=torch.float64).T
    assert abs(float((cos * sin).mean())) * 20_000**0.5 < 3.3
    assert abs(float(((cos**2 - 1) * (sin**2 - 1)).mean())) / 2 * 20_000**0.5 < 3.3


def test_tails() -> None:
    normal = random(1000).normal(2000)
    for bound, expected in ((3.0, 0.0026998), (4.0, 6.334e-5), (4.5, 6.795e-6)):
        count = int((normal.abs() > bound).sum())
        mean = expected * normal.numel()
        assert abs(count - mean) < 3.5 * mean**0.5 + 1


def test_numbers_do_not_depend_on_the_batch_or_on_how_many_are_drawn() -> None:
    whole = random(8, seed=5)
    for part in (torch.tensor([3]), torch.tensor([6, 1, 3])):
        alone = Random.at(5, part).stream("noise")
        assert torch.equal(alone.normal(3, 5), whole.stream("noise").normal(3, 5)[part])
        assert torch.equal(alone.uniform(), whole.stream("noise").uniform()[part])
    assert torch.equal(whole.bits(5), whole.bits(9)[:, :5])
    assert torch.equal(whole.uniform(5), whole.uniform(9)[:, :5])
    assert torch.equal(whole.uniform(2, 3), whole.uniform(6).reshape(8, 2, 3))
    assert torch.equal(whole.normal(3, 4), whole.normal(12).reshape(8, 3, 4))


def test_precisions_draw_the_same_normals() -> None:
    exact = random(500).normal(41, dtype=torch.float64)
    assert float((random(500).normal(41) - exact).abs().max()) < 1e-3  # 2^-24 near radius 0, rounded angle elsewhere
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(random(500).normal(41, dtype=dtype), random(500).normal(41).to(dtype))


def test_shapes_and_dtypes() -> None:
    source = random(3)
    assert source.uniform().shape == (3,)
    assert source.uniform().dtype == torch.float64
    assert source.normal(2, 5).shape == (3, 2, 5)
    assert source.normal(2, 5).dtype == torch.float32
    assert source.normal().shape == (3,)
    assert random(0).normal(2, 5).shape == (0, 2, 5)
