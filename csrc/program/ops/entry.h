// The table of ops: what each is able to do, by kind. A file program/ops/<op>.cpp describes its op
// by a class that inherits Rules, and says again what is different for it:
//
//   struct Softmax : Rules<Softmax> {
//     static constexpr bool in_place = true;
//     template <typename T>
//     static void call(const Call<T>& c) { ... }
//     template <typename T>
//     static void reverse(const Reverse<T>& p) { ... }
//     ...  // tangent_forward, tangent_reverse
//   };
//   const OpEntry ops::softmax = make_entry<Softmax>();
//
// A pass is asked once per op and tile; loops over elements are kernels (cpu/kernels.h).
#pragma once
#include "derivatives/passes.h"
#include "program/resident_step.h"
#include "question/call.h"

namespace pylandscape {

// How a convolution can end with an op that alone reads its result.
enum class Epilogue { kNone, kNorm, kSum };

// The inputs of an op, as the products with them read them when it is differentiated: `count` blocks
// of (k, cols), k filled up to a multiple of `vectors` vectors, from row `first` on, of images
// `width` wide.
struct Columns {
  int64_t count, k, first, width;
  int64_t vectors;
  int64_t at_once;     // blocks whose tangents are needed together
  int64_t panel_rows;  // rows of the output whose adjoints are kept as panels
  bool own = false;    // no other op reads them
  bool same_input(const Columns& o) const {
    return !own && !o.own && count == o.count && k == o.k && first == o.first && width == o.width;
  }
};

template <typename T>
struct Passes {
  void (*call)(const Call<T>&);        // of a question
  void (*call_lanes)(const Call<T>&);  // with vector_length points as the lanes of each column
  // Throws where x (samples, features) are no data that the op takes.
  void (*check_data)(const Op&, int64_t samples, int64_t features, const T* x);
  void (*forward)(const Forward<T>&);
  void (*reverse)(const Reverse<T>&);
  void (*tangent_forward)(const TangentForward<T>&);
  void (*tangent_reverse)(const TangentReverse<T>&);
  void (*sample_gradients)(const SampleGradients<T>&);
};

struct OpEntry {
  bool in_place;        // may write over an input that is not read again
  bool point_lanes;     // able to do call_lanes
  bool combines;        // linear in its weight: may be a sum over directions (How::kCombine)
  bool curves;          // elementwise with f'': f' and f'' dy are kept at theta
  bool takes_epilogue;  // can end with a norm or a sum
  bool (*takes_relu)(const Op&);  // can end with max(., 0)
  Epilogue (*epilogue)(const Op&);
  Columns (*columns)(const Op&);    // null: no product with a weight
  void (*resident)(ResidentStep&);  // writes its step for a GPU's block; null: there is none
  Passes<float> f32;
  Passes<double> f64;
};

// At theta, as in a question.
template <typename T>
Call<T> call_of(const Forward<T>& p) {
  const Parameters<T> at(p.op, [&](int use) { return p.parameter(use); });
  return {p.op, p.program, p.kernels, p.cols, p.slots, at, nullptr, p.out};
}

// What holds for most ops.
template <class Own>
struct Rules {
  static constexpr bool in_place = false, point_lanes = false, combines = false, curves = false;
  static constexpr bool takes_epilogue = false;
  static bool takes_relu(const Op&) { return false; }
  static Epilogue epilogue(const Op&) { return Epilogue::kNone; }
  static constexpr Columns (*columns)(const Op&) = nullptr;
  static constexpr void (*resident)(ResidentStep&) = nullptr;
  template <typename T>
  static void call_lanes(const Call<T>& c) {  // without parameters, a lane is a column like others
    Own::call(c);
  }
  template <typename T>
  static void check_data(const Op&, int64_t, int64_t, const T*) {}
  template <typename T>
  static void forward(const Forward<T>& p) {
    Own::call(call_of(p));
  }
  template <typename T>
  static void sample_gradients(const SampleGradients<T>&) {}  // no parameters
};

template <class Own, typename T>
constexpr Passes<T> passes_of() {
  return {Own::template call<T>,
          Own::template call_lanes<T>,
          Own::template check_data<T>,
          Own::template forward<T>,
          Own::template reverse<T>,
          Own::template tangent_forward<T>,
          Own::template tangent_reverse<T>,
          Own::template sample_gradients<T>};
}

template <class Own>
constexpr OpEntry make_entry() {
  return {Own::in_place,       Own::point_lanes, Own::combines, Own::curves,
          Own::takes_epilogue, Own::takes_relu,  Own::epilogue, Own::columns,
          Own::resident,       passes_of<Own, float>(), passes_of<Own, double>()};
}

namespace ops {
#define PYLANDSCAPE_DECLARE(Kind, name) extern const OpEntry name;
PYLANDSCAPE_EACH_OP(PYLANDSCAPE_DECLARE)
#undef PYLANDSCAPE_DECLARE
}  // namespace ops

extern const OpEntry* const kOpTable[kOpKinds];   // by kind
extern const char* const kOpNames[kOpKinds];

inline const OpEntry& entry(OpKind kind) { return *kOpTable[static_cast<int>(kind)]; }
template <typename T>
const Passes<T>& passes(OpKind kind);
template <>
inline const Passes<float>& passes(OpKind kind) { return entry(kind).f32; }
template <>
inline const Passes<double>& passes(OpKind kind) { return entry(kind).f64; }

}  // namespace pylandscape
