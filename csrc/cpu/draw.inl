// The Gaussian draw over vectors: common/gaussian.h's arithmetic with as many lanes as a register
// of this instruction set holds. Included by directions.inl.
#include <algorithm>
#include <type_traits>

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

  template <uint32_t kBit>
  static void exchange(Word w, Float& x, Float& y) {
#if defined(__AVX512F__)
    const __mmask16 odd = _mm512_test_epi32_mask((__m512i)w, _mm512_set1_epi32(kBit));
    const __m512 z = _mm512_mask_blend_ps(odd, (__m512)x, (__m512)y);
    y = (Float)_mm512_mask_blend_ps(odd, (__m512)y, (__m512)x), x = (Float)z;
#else
    const Word odd = (Word)((w & kBit) == kBit);  // all ones or zeros
    const Word both = ((Word)x ^ (Word)y) & odd;
    x = (Float)((Word)x ^ both), y = (Float)((Word)y ^ both);
#endif
  }

// What follows are single instructions that the compiler does not find by itself; with a full mask:
// GCC 12 takes the plain forms for uninitialised.
#if defined(__AVX512F__)
  static Float word_to_float(Word w) {
    return (Float)_mm512_maskz_cvtepu32_ps(0xffff, (__m512i)w);
  }
  static Word at_least_one(Word w) {
    return (Word)_mm512_maskz_max_epu32(0xffff, (__m512i)w, _mm512_set1_epi32(1));
  }
  static Wide product(Wide a, Wide b) {
    return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
  }
  // Words in the low halves of `even` and `odd`, interleaved.
  static Word interleave(Wide even, Wide odd) {
    return (Word)_mm512_mask_shuffle_epi32((__m512i)even, 0xaaaa, (__m512i)odd, _MM_PERM_CCAA);
  }
  static Float square_root(Float x) { return (Float)_mm512_maskz_sqrt_ps(0xffff, (__m512)x); }
#else
  static Float word_to_float(Word w) {
    return to_float((Int)(w >> 16)) * 65536.0f + to_float((Int)(w & 0xffffu));
  }
  static Word at_least_one(Word w) { return w == 0u ? w + 1u : w; }
  static Word interleave(Wide even, Wide odd) {
    return (Word)((even & 0xffffffffu) | (odd << 32));
  }
#if defined(__AVX2__)
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
#endif
};

// Two of them side by side: what one waits for, the other computes in the meantime.
template <typename V>
struct Two {
  V a, b;
#define PL_BOTH(op)                                                                   \
  friend Two operator op(Two x, Two y) { return {x.a op y.a, x.b op y.b}; }           \
  template <typename S, typename = std::enable_if_t<std::is_arithmetic_v<S>>>         \
  friend Two operator op(Two x, S y) { return {x.a op y, x.b op y}; }                 \
  template <typename S, typename = std::enable_if_t<std::is_arithmetic_v<S>>>         \
  friend Two operator op(S x, Two y) { return {x op y.a, x op y.b}; }
  PL_BOTH(+) PL_BOTH(-) PL_BOTH(*) PL_BOTH(/) PL_BOTH(&) PL_BOTH(^) PL_BOTH(<<)
#undef PL_BOTH
};

struct TwoLanes {
  using Float = Two<Lanes::Float>;
  using Int = Two<Lanes::Int>;
  using Word = Two<Lanes::Word>;
  static Float to_float(Int x) { return {Lanes::to_float(x.a), Lanes::to_float(x.b)}; }
  static Float word_to_float(Word w) {
    return {Lanes::word_to_float(w.a), Lanes::word_to_float(w.b)};
  }
  static Word at_least_one(Word w) { return {Lanes::at_least_one(w.a), Lanes::at_least_one(w.b)}; }
  static Float square_root(Float x) { return {Lanes::square_root(x.a), Lanes::square_root(x.b)}; }
  template <uint32_t kBit>
  static void exchange(Word w, Float& x, Float& y) {
    Lanes::exchange<kBit>(w.a, x.a, y.a), Lanes::exchange<kBit>(w.b, x.b, y.b);
  }
};

inline Lanes::Wide splat_wide(uint64_t x) { return x - Lanes::Wide{}; }

// What Philox has in common for all blocks whose numbers share their upper half: the keys, and of
// the first two rounds what no block's lower half reaches.
struct Stream {
  uint64_t second, zero, two;  // what is xored into words that hold nothing else by then
  uint64_t keys[2 * gaussian::kRounds];

  Stream(uint64_t seed, uint64_t stream, uint32_t high) {
    using namespace gaussian;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int r = 0; r < kRounds; ++r, k0 += kWeyl0, k1 += kWeyl1)
      keys[2 * r] = k0, keys[2 * r + 1] = k1;
    const uint64_t p1 = uint64_t(kMultiplier1) * uint32_t(stream);  // of the first round
    const uint64_t p0 = uint64_t(kMultiplier0) * (uint32_t(p1 >> 32) ^ high ^ uint32_t(keys[0]));
    second = (stream >> 32) ^ keys[1];
    zero = uint32_t(p1) ^ keys[2];
    two = (p0 >> 32) ^ keys[3];
    keys[5] ^= uint32_t(p0);  // word 3 enters the third round, and nothing else
  }
};

// Philox over 64-bit lanes; what stands in the upper halves does not matter.
struct Counter {
  Lanes::Wide c[4];

  // After two rounds. `first` (lanes): the first round's product with the block's lower half.
  void start(const Stream& s, Lanes::Wide first) {
    const Lanes::Wide p1 =
        Lanes::product((first >> 32) ^ s.second, splat_wide(gaussian::kMultiplier1));
    c[0] = (p1 >> 32) ^ s.zero, c[1] = p1;
    c[2] = first ^ s.two, c[3] = Lanes::Wide{};
  }
  void round(const uint64_t* keys) {
    const Lanes::Wide p0 = Lanes::product(c[0], splat_wide(gaussian::kMultiplier0));
    const Lanes::Wide p1 = Lanes::product(c[2], splat_wide(gaussian::kMultiplier1));
    c[0] = (p1 >> 32) ^ c[1] ^ keys[0];
    c[2] = (p0 >> 32) ^ c[3] ^ keys[1];
    c[1] = p1, c[3] = p0;
  }
};

// out (kAtOnce, 64) = groups `index` on, whose blocks' numbers share their upper half: blocks in
// steps of a register, even and odd ones apart.
template <int kAtOnce>
inline void draw_groups(const Stream& s, uint64_t index, float* out) {
  using namespace gaussian;
  for (int first = 0; first < kBlocks; first += kWordLanes) {
    Lanes::Wide lanes;
    for (int l = 0; l < kWordLanes / 2; ++l) lanes[l] = uint64_t(kMultiplier0) * 2 * l;
    Counter even[kAtOnce], odd[kAtOnce];
#pragma GCC unroll 4
    for (int g = 0; g < kAtOnce; ++g) {
      const uint64_t p = kMultiplier0 * uint64_t(uint32_t((index + g) * kBlocks + first));
      even[g].start(s, lanes + p), odd[g].start(s, lanes + (p + kMultiplier0));
    }
#pragma GCC unroll 10
    for (int r = 2; r < kRounds; ++r)
#pragma GCC unroll 4
      for (int g = 0; g < kAtOnce; ++g)
        even[g].round(s.keys + 2 * r), odd[g].round(s.keys + 2 * r);
#pragma GCC unroll 4
    for (int g = 0; g < kAtOnce; ++g) {
      Lanes::Word w[4];
      for (int i = 0; i < 4; ++i) w[i] = Lanes::interleave(even[g].c[i], odd[g].c[i]);
      Two<Lanes::Float> x, y;
      box_muller<TwoLanes>({w[0], w[2]}, {w[1], w[3]}, x, y);
      const Lanes::Float z[4] = {x.a, y.a, x.b, y.b};
      for (int i = 0; i < 4; ++i)
        store<float, kWordLanes>(out + g * kGroup + i * kBlocks + first, z[i]);
    }
  }
}

template <typename T>
void draw(uint64_t seed, uint64_t stream, int64_t first, int64_t n, T* out, const T* soon) {
  constexpr int kGroup = gaussian::kGroup, kAtOnce = 4;
  constexpr int kLine = 64 / sizeof(T);
  constexpr int kHigh = 28;  // a group's number without its last 28 bits: its blocks' upper half
  static_assert((int64_t{gaussian::kBlocks} << kHigh) == int64_t{1} << 32);
  uint64_t high = uint64_t(first / kGroup) >> kHigh;
  Stream own(seed, stream, uint32_t(high));
  for (int64_t i = 0; i < n;) {
    const int64_t skip = (first + i) % kGroup;
    const uint64_t group = (first + i) / kGroup;
    if (group >> kHigh != high) high = group >> kHigh, own = Stream(seed, stream, uint32_t(high));
    const bool several = skip == 0 && n - i >= kAtOnce * kGroup &&
                         (group + kAtOnce - 1) >> kHigh == high;
    const int64_t count = several ? kAtOnce * kGroup : std::min(kGroup - skip, n - i);
    if (soon != nullptr)
      for (int64_t j = i; j < i + count; j += kLine) __builtin_prefetch(soon + j);
    if (sizeof(T) == sizeof(float) && several) {
      draw_groups<kAtOnce>(own, group, reinterpret_cast<float*>(out + i));
    } else {
      float all[kAtOnce * kGroup];
      if (several) draw_groups<kAtOnce>(own, group, all);
      else draw_groups<1>(own, group, all);
      for (int64_t j = 0; j < count; ++j) out[i + j] = all[skip + j];
    }
    i += count;
  }
}

}  // namespace
}  // namespace pylandscape::cpu
