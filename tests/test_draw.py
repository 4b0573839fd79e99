"""The Gaussian draw: the generator's published vectors, its bits everywhere, its distribution."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from direction_support import CAPABILITIES, run_python
from scipy import stats

from pylandscape.errors import InvalidArgument
from pylandscape.theta.directions import gaussian

U32 = np.uint32
N = 2_000_000


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of counters (4, m) uint32, in plain numpy: (4, m) uint32."""
    c = counter.astype(np.uint64)
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = np.stack(
            [
                (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
                p1 & low,
                (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
                p0 & low,
            ]
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c.astype(U32)


def reference(seed: int, stream: int, groups: range) -> np.ndarray:
    """The numbers of `groups` (64 each) by the recipe of csrc/common/gaussian.h, in numpy."""
    seed, stream = seed % 2**64, stream % 2**64
    block = np.arange(16 * groups.start, 16 * groups.stop, dtype=np.uint64)
    counter = np.stack(
        [
            block & np.uint64(0xFFFFFFFF),
            block >> np.uint64(32),
            np.full_like(block, stream & 0xFFFFFFFF),
            np.full_like(block, stream >> 32),
        ]
    )
    w = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    z = np.concatenate([_pair(w[0], w[1]), _pair(w[2], w[3])])  # (4, blocks)
    return z.reshape(4, -1, 16).transpose(1, 0, 2).reshape(-1)


def _pair(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    f = np.float32
    w = np.maximum(radius, U32(1))
    u = (w >> U32(16)).astype(f) * f(65536) + (w & U32(0xFFFF)).astype(f)
    offset = u.view(np.int32) - np.int32(0x3F3504F3)
    m = ((offset & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3)).view(f)
    s = (m - f(1)) / (m + f(1))
    s2 = s * s
    p = (((s2 * f(0.11111111) + f(0.14285715)) * s2 + f(0.2)) * s2 + f(0.33333334)) * s2
    log_m = f(2) * (s + s * p)
    r = np.sqrt(f(2) * ((32 - (offset >> 23)).astype(f) * f(0.6931472) - log_m))
    t = (angle << U32(2)).view(np.int32).astype(f) * f(3.6572176e-10)
    t2 = t * t
    sine = ((f(2.7557319e-6) * t2 - f(1.9841270e-4)) * t2 + f(8.3333333e-3)) * t2 - f(0.16666667)
    cosine = ((f(2.4801587e-5) * t2 - f(1.3888889e-3)) * t2 + f(4.1666667e-2)) * t2 - f(0.5)
    sine, cosine = t + t * (t2 * sine), f(1) + t2 * cosine
    quadrant = angle >> U32(30)
    odd = quadrant % 2 == 1
    x, y = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    x = np.where((quadrant == 1) | (quadrant == 2), -x, x)
    return np.stack([r * x, r * np.where(quadrant >= 2, -y, y)])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            (0xFFFFFFFF, 0xFFFFFFFF),
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_reference_philox_gives_random123s_known_answers(
    counter: str, key: tuple[int, int], words: str
) -> None:
    column = np.array([[int(word, 16)] for word in counter.split()], dtype=U32)
    assert " ".join(f"{int(x):08x}" for x in philox(column, key)[:, 0]) == words


@pytest.mark.parametrize(
    ("seed", "stream", "first"),
    [
        (0, 0, 0),
        (-(2**63), 2**63 - 1, 64),
        (0xA40938221, 0x299F31D0, 64 * 12345),
        (7, 1, 2**36 - 128),  # block numbers cross 32 bits
        (7, 1, 2**48),
    ],
)
def test_bits_are_those_of_a_plain_numpy_reference(seed: int, stream: int, first: int) -> None:
    groups = range(first // 64, first // 64 + 40)
    got = gaussian(seed, stream, first, 64 * len(groups)).numpy()
    np.testing.assert_array_equal(got.view(U32), reference(seed, stream, groups).view(U32))


def test_every_word_of_the_radius_and_angle_gives_a_finite_number() -> None:
    edge = [0, 1, 2, 127, 128, 0xFFFF, 0x10000, 0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000]
    edge += [0xBFFFFFFF, 0xC0000000, 0xFFFFFF7F, 0xFFFFFF80, 0xFFFFFFFE, 0xFFFFFFFF]
    words = np.array(edge + [int(2**32 * x) for x in (0.25, 0.5, 0.7071, 0.99)], dtype=U32)
    radius, angle = (a.reshape(-1) for a in np.meshgrid(words, words))
    z = _pair(radius, angle)
    assert np.isfinite(z).all()
    exact = np.sqrt(-2 * np.log(np.maximum(radius, 1).astype(np.float64) / 2**32))
    # A radius comes from 24 bits next to u = 1: below sqrt(2 * 2^-24) there is only zero.
    np.testing.assert_allclose(np.hypot(*z.astype(np.float64)), exact, rtol=1e-6, atol=3.5e-4)
    assert abs(z).max() == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-6)


def test_any_range_is_a_piece_of_the_same_sequence() -> None:
    whole = gaussian(3, 5, 0, 1000)
    pieces = [(0, 1), (1, 1), (63, 2), (64, 64), (17, 130), (999, 1), (500, 0), (5, 995)]
    for first, count in pieces:
        assert torch.equal(gaussian(3, 5, first, count), whole[first : first + count])


def test_bits_do_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gaussian(1, 0, 3, 300_001)
        torch.set_num_threads(2)
        assert torch.equal(gaussian(1, 0, 3, 300_001), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_bits_do_not_depend_on_the_instruction_set(capability: str) -> None:
    program = (
        "import hashlib, pylandscape.theta.directions as d\n"
        "z = d.gaussian(11, 2, 5, 20_003).numpy()\n"
        "print(hashlib.sha256(z.tobytes()).hexdigest())"
    )
    here = gaussian(11, 2, 5, 20_003).numpy()
    assert run_python(program, capability) == hashlib.sha256(here.tobytes()).hexdigest()


def test_moments_are_the_normal_distributions() -> None:
    z = gaussian(20, 0, 0, N).double().numpy()
    # Standard deviations of the sample moments: sqrt(var(z^p) / N) = sqrt(1, 2, 15, 96 over N).
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - mean) < 4 * math.sqrt(variance / N), power


def test_distribution_passes_kolmogorov_smirnov() -> None:
    for stream in range(4):
        z = gaussian(21, stream, 0, N // 4).numpy()
        assert stats.kstest(z, "norm").pvalue > 1e-3


def test_tails_have_the_right_mass() -> None:
    z = np.abs(gaussian(22, 0, 0, 8 * N).numpy())
    for bound in (2.0, 3.0, 4.0, 4.75):
        expected = len(z) * math.erfc(bound / math.sqrt(2))
        assert abs((z > bound).sum() - expected) < 4.5 * math.sqrt(expected) + 1, bound


def test_neighbours_streams_and_seeds_are_uncorrelated() -> None:
    z = gaussian(0, 0, 0, N).double()
    others = {
        "next number": z.roll(1),
        "other word of the pair": z.roll(16),
        "other pair of the block": z.roll(32),
        "next stream": gaussian(0, 1, 0, N).double(),
        "next seed": gaussian(1, 0, 0, N).double(),
    }
    for name, other in others.items():
        assert abs(float((z * other).mean())) < 4.5 / math.sqrt(N), name
        assert abs(float((z.square() * other.square()).mean()) - 1) < 4.5 * math.sqrt(8 / N), name


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InvalidArgument, match=r"count: expected .* >= 0, got -1"):
        gaussian(0, 0, 0, -1)
    with pytest.raises(InvalidArgument, match=r"first: expected .* >= 0, got -3"):
        gaussian(0, 0, -3, 4)
    with pytest.raises(InvalidArgument, match="seed: expected a 64-bit integer"):
        gaussian(2**64, 0, 0, 4)
