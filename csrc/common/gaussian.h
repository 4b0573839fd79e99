// Standard normal numbers by counter: number i of stream (seed, stream) is a function of these three
// alone, and has the same bits on every CPU, GPU, instruction set and thread count.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives four
// 32-bit words a block; Box-Muller makes two normals of two words. All arithmetic is float32 add,
// multiply, divide and square root, each rounded once: files that include this are compiled without
// contraction of a*b+c (-ffp-contract=off, --fmad=false). |z| <= sqrt(64 ln 2) = 6.66.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PL_HOST_DEVICE __host__ __device__
#else
#define PL_HOST_DEVICE
#endif

namespace pylandscape::gaussian {

// Numbers come in groups of 64 from 16 blocks, so that a group is four rows of 16 lanes: number
// 64 g + 16 l + j is word l's normal of block 16 g + j.
constexpr int kGroup = 64, kBlocks = 16;

struct Words {
  uint32_t x[4];
};

PL_HOST_DEVICE inline Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                   uint32_t k1) {
#if defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    const uint32_t n0 = uint32_t(p1 >> 32) ^ c1 ^ k0, n2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1), c3 = uint32_t(p0);
    c0 = n0, c2 = n2;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

template <typename To, typename From>
PL_HOST_DEVICE inline To bits(From from) {
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

PL_HOST_DEVICE inline float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

// -2 log(w / 2^32) for a word w; w = 0 counts as 1.
PL_HOST_DEVICE inline float minus_two_log(uint32_t w) {
  w = w == 0 ? 1 : w;
  // Both halves convert exactly, so their sum is w rounded once, on hardware without a conversion.
  const float u = float(int32_t(w >> 16)) * 65536.0f + float(int32_t(w & 0xffff));
  // u = 2^e m, m in [sqrt(1/2), sqrt(2)); log m = 2 atanh((m - 1) / (m + 1)).
  const int32_t offset = bits<int32_t>(u) - 0x3f3504f3;
  const int32_t e = offset >> 23;
  const float m = bits<float>((offset & 0x007fffff) + 0x3f3504f3);
  const float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  const float p = (((s2 * 0.11111111f + 0.14285715f) * s2 + 0.2f) * s2 + 0.33333334f) * s2;
  const float log_m = 2.0f * (s + s * p);
  const float exponent = float(32 - e);  // -log(2^-32 2^e) = (32 - e) log 2
  return 2.0f * (exponent * 0.6931472f - log_m);
}

// cos and sin of an angle whose 2^32-th part of a turn is w (turned by an eighth, which no
// distribution notices).
PL_HOST_DEVICE inline void circle(uint32_t w, float& x, float& y) {
  const uint32_t quadrant = w >> 30;
  const float t = float(int32_t(w << 2)) * 3.6572176e-10f;  // 2^-31 pi / 4: in [-pi/4, pi/4)
  const float t2 = t * t;
  const float s =
      t + t * (t2 * ((((2.7557319e-6f * t2 - 1.9841270e-4f) * t2 + 8.3333333e-3f) * t2) -
                     0.16666667f));
  const float c =
      1.0f + t2 * ((((2.4801587e-5f * t2 - 1.3888889e-3f) * t2 + 4.1666667e-2f) * t2) - 0.5f);
  const bool odd = (quadrant & 1) != 0;
  const float a = odd ? s : c, b = odd ? c : s;
  x = quadrant == 1 || quadrant == 2 ? -a : a;
  y = quadrant >= 2 ? -b : b;
}

// The four normals of one block.
PL_HOST_DEVICE inline void normals(uint64_t seed, uint64_t stream, uint64_t block, float* z0,
                                   float* z1, float* z2, float* z3) {
  const Words w = philox(uint32_t(block), uint32_t(block >> 32), uint32_t(stream),
                         uint32_t(stream >> 32), uint32_t(seed), uint32_t(seed >> 32));
  float x, y;
  const float r = square_root(minus_two_log(w.x[0]));
  circle(w.x[1], x, y);
  *z0 = r * x, *z1 = r * y;
  const float q = square_root(minus_two_log(w.x[2]));
  circle(w.x[3], x, y);
  *z2 = q * x, *z3 = q * y;
}

// Number i alone.
PL_HOST_DEVICE inline float normal(uint64_t seed, uint64_t stream, uint64_t i) {
  float z[4];
  normals(seed, stream, i / kGroup * kBlocks + i % kBlocks, z, z + 1, z + 2, z + 3);
  return z[i % kGroup / kBlocks];
}

}  // namespace pylandscape::gaussian
