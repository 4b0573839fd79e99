// The Gaussian draw over vectors: common/gaussian.h's arithmetic with as many lanes as a register
// of this instruction set holds. Included by directions.inl.
#include <algorithm>

#include "common/gaussian.h"
#include "cpu/vec.inl"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pylandscape::cpu {
namespace {

constexpr int kWordLanes = kVectorBytes / 4;

struct Lanes {
  using Float = Vec<float>;
  using Int = IVec<float>;
  typedef uint32_t Word __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t Wide __attribute__((vector_size(kVectorBytes)));  // a word in each low half
  static Float to_float(Int x) { return __builtin_convertvector(x, Float); }

// A 64-bit product of low halves and a square root are single instructions that the compiler does
// not find by itself.
#if defined(__AVX512F__)  // with a full mask: GCC 12 takes the plain forms for uninitialised
  static Wide product(Wide a, Wide b) {
    return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
  }
  static Float square_root(Float x) { return (Float)_mm512_maskz_sqrt_ps(0xffff, (__m512)x); }
#elif defined(__AVX2__)
  static Wide product(Wide a, Wide b) { return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
  static Float square_root(Float x) { return (Float)_mm256_sqrt_ps((__m256)x); }
#elif defined(__SSE2__)
  static Wide product(Wide a, Wide b) { return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)b); }
  static Float square_root(Float x) { return (Float)_mm_sqrt_ps((__m128)x); }
#else
  static Wide product(Wide a, Wide b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
  static Float square_root(Float x) {
    for (int l = 0; l < kWordLanes; ++l) x[l] = __builtin_sqrtf(x[l]);
    return x;
  }
#endif
};

// Philox over 64-bit lanes; what stands in the upper halves does not matter.
struct Counter {
  Lanes::Wide c[4];
  void round(uint64_t k0, uint64_t k1) {
    const Lanes::Wide p0 = Lanes::product(c[0], splat_wide(gaussian::kMultiplier0));
    const Lanes::Wide p1 = Lanes::product(c[2], splat_wide(gaussian::kMultiplier1));
    c[0] = (p1 >> 32) ^ c[1] ^ k0;
    c[2] = (p0 >> 32) ^ c[3] ^ k1;
    c[1] = p1, c[3] = p0;
  }
  static Lanes::Wide splat_wide(uint64_t x) { return x - Lanes::Wide{}; }
};

// out (64,) = group `index`: its blocks in steps of a register, even and odd ones apart.
inline void draw_group(uint64_t seed, uint64_t stream, uint64_t index, float* out) {
  using namespace gaussian;
  for (int first = 0; first < kBlocks; first += kWordLanes) {
    Lanes::Wide block = Counter::splat_wide(index * kBlocks + first);
    for (int l = 0; l < kWordLanes / 2; ++l) block[l] += 2 * l;
    const Lanes::Wide low = Counter::splat_wide(stream), high = low >> 32;
    Counter even{{block, block >> 32, low, high}};
    block += 1;
    Counter odd{{block, block >> 32, low, high}};
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int r = 0; r < kRounds; ++r) {
      even.round(k0, k1), odd.round(k0, k1);
      k0 += kWeyl0, k1 += kWeyl1;
    }
    Lanes::Word w[4];
    for (int i = 0; i < 4; ++i)
      w[i] = (Lanes::Word)((even.c[i] & 0xffffffffu) | (odd.c[i] << 32));
    Lanes::Float z[4];
    box_muller<Lanes>(w, z);
    for (int i = 0; i < 4; ++i)
      store<float, kWordLanes>(out + i * kBlocks + first, z[i]);
  }
}

template <typename T>
void draw(uint64_t seed, uint64_t stream, int64_t first, int64_t n, T* out, const T* soon) {
  constexpr int kGroup = gaussian::kGroup;
  constexpr int kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < n;) {
    const int64_t skip = (first + i) % kGroup, count = std::min(kGroup - skip, n - i);
    const uint64_t group = (first + i) / kGroup;
    if (soon != nullptr)
      for (int64_t j = i; j < i + count; j += kLine) __builtin_prefetch(soon + j);
    if (sizeof(T) == sizeof(float) && count == kGroup) {
      draw_group(seed, stream, group, reinterpret_cast<float*>(out + i));
    } else {
      float all[kGroup];
      draw_group(seed, stream, group, all);
      for (int64_t j = 0; j < count; ++j) out[i + j] = all[skip + j];
    }
    i += count;
  }
}

}  // namespace
}  // namespace pylandscape::cpu
