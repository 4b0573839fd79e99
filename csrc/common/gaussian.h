// Standard normal numbers by counter: number i of stream (seed, stream) is a function of these three
// alone, and has the same bits on every CPU, GPU, instruction set and thread count.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives four
// 32-bit words a block; Box-Muller makes two normals of two words. All arithmetic is float32 add,
// multiply, divide and square root, each rounded once: files that include this are compiled without
// contraction of a*b+c (-ffp-contract=off, --fmad=false). |z| <= sqrt(64 ln 2) = 6.66.
//
// The arithmetic is written once, over lanes: `Scalar` here is the reference and what a GPU thread
// runs; cpu/draw.inl has lanes of vectors, whose quotients, roots and conversions may take other
// instructions to the same bits.
#pragma once
#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace pylandscape::gaussian {

// Numbers come in groups of 64 from 16 blocks, so that a group is four rows of 16 lanes: number
// 64 g + 16 l + j is word l's normal of block 16 g + j.
constexpr int kGroup = 64, kBlocks = 16;

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

struct Words {
  uint32_t x[4];
};

// counter (c0, c1, c2, c3), key (k0, k1), as in Random123.
PL_HOST_DEVICE inline Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                   uint32_t k1) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t(kMultiplier0) * c0, p1 = uint64_t(kMultiplier1) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0, c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1), c3 = uint32_t(p0);
    k0 += kWeyl0, k1 += kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

struct Scalar {
  using Float = float;
  using Int = int32_t;
  using Word = uint32_t;
  PL_HOST_DEVICE static float to_float(int32_t x) { return static_cast<float>(x); }
  // Both halves convert exactly, so their sum is w rounded once, also without unsigned conversions.
  PL_HOST_DEVICE static float word_to_float(uint32_t w) {
    return to_float(int32_t(w >> 16)) * 65536.0f + to_float(int32_t(w & 0xffffu));
  }
  PL_HOST_DEVICE static uint32_t at_least_one(uint32_t w) { return w == 0u ? 1u : w; }
  // x and y change places where the bit of w is set.
  template <uint32_t kBit>
  PL_HOST_DEVICE static void exchange(uint32_t w, float& x, float& y) {
    const float z = (w & kBit) != 0u ? y : x;
    y = (w & kBit) != 0u ? x : y, x = z;
  }
  PL_HOST_DEVICE static float square_root(float x) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
  }
};

template <typename To, typename From>
PL_HOST_DEVICE inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits are moved, not converted");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// -2 log(w / 2^32) for words w; w = 0 counts as 1.
template <typename L>
PL_HOST_DEVICE inline typename L::Float minus_two_log(typename L::Word w) {
  using Float = typename L::Float;
  using Int = typename L::Int;
  const Float u = L::word_to_float(L::at_least_one(w));
  // u = 2^e m, m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1).
  const Int exponent = (bits<Int>(u) - 0x3f3504f3) & -0x800000;  // 2^23 e
  const Float m = bits<Float>(bits<Int>(u) - exponent);
  const Float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  const Float p = (((s2 * 0.11111111f + 0.14285715f) * s2 + 0.2f) * s2 + 0.33333334f) * s2;
  // 2 (32 - e) log 2 - 4 (log m) / 2: powers of two change no rounding.
  const Float rest = L::to_float(32 * 0x800000 - exponent) * (0.6931472f * 0x1p-22f);
  return rest - 4.0f * (s + s * p);
}

// cos and sin of an angle whose 2^32-th part of a turn is w (turned by an eighth, which no
// distribution notices).
template <typename L>
PL_HOST_DEVICE inline void circle(typename L::Word w, typename L::Float& x, typename L::Float& y) {
  using Float = typename L::Float;
  using Word = typename L::Word;
  const Float t = L::to_float(bits<typename L::Int>(w << 2)) * 3.6572176e-10f;  // 2^-31 pi / 4
  const Float t2 = t * t;  // t in [-pi/4, pi/4)
  const Float s =
      t + t * (t2 * (((2.7557319e-6f * t2 - 1.9841270e-4f) * t2 + 8.3333333e-3f) * t2 -
                     0.16666667f));
  const Float c =
      1.0f + t2 * (((2.4801587e-5f * t2 - 1.3888889e-3f) * t2 + 4.1666667e-2f) * t2 - 0.5f);
  // The two top bits are the quadrant: sin and cos change places in the odd ones; x < 0 in 1 and
  // 2, y < 0 in 2 and 3.
  Float first = c, second = s;
  L::template exchange<0x40000000u>(w, first, second);
  x = bits<Float>(bits<Word>(first) ^ ((w + 0x40000000u) & 0x80000000u));
  y = bits<Float>(bits<Word>(second) ^ (w & 0x80000000u));
}

// The two normals of a word for the radius and one for the angle.
template <typename L>
PL_HOST_DEVICE inline void box_muller(typename L::Word radius, typename L::Word angle,
                                      typename L::Float& first, typename L::Float& second) {
  const typename L::Float r = L::square_root(minus_two_log<L>(radius));
  typename L::Float x, y;
  circle<L>(angle, x, y);
  first = r * x, second = r * y;
}

// The four normals z[0..3] of one block: numbers 64 (block / 16) + 16 l + block % 16, l = 0 .. 3.
PL_HOST_DEVICE inline void normals(uint64_t seed, uint64_t stream, uint64_t block, float* z) {
  const Words w = philox(uint32_t(block), uint32_t(block >> 32), uint32_t(stream),
                         uint32_t(stream >> 32), uint32_t(seed), uint32_t(seed >> 32));
  box_muller<Scalar>(w.x[0], w.x[1], z[0], z[1]);
  box_muller<Scalar>(w.x[2], w.x[3], z[2], z[3]);
}

}  // namespace pylandscape::gaussian
