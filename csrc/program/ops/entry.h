// The table of ops: what each is able to do, by kind. A file program/ops/<op>.cpp describes its op
// by a class that inherits Rules, and says again what is different for it:
//
//   struct Softmax : Rules<Softmax> {
//     static constexpr bool in_place = true;
//     template <class P>
//     static void call(const P& c) { ... }
//     template <class P>
//     static void reverse(const P& p) { ... }
//     ...  // tangent_forward, tangent_reverse
//   };
//   const OpEntry ops::softmax = make_entry<Softmax>();
//
// A pass is asked once per op and tile; loops over elements are kernels (cpu/kernels.h). An op
// without parameters writes its passes for any of the structs that they take (template <class P>),
// and so has them for points as lanes, too (points/passes.h).
#pragma once
#include "derivatives/passes.h"
#include "points/hessian_steps.h"
#include "points/lowering.h"
#include "points/passes.h"
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
  // <dy, y''>, y'' the second derivative of y along (v, Rx); may write over R(dy). Null: from
  // tangent_reverse.
  double (*form)(const TangentReverse<T>&);
};

// Of points as lanes.
struct PointPasses {
  const char* refusal;  // why a network with the op does not run so; null where it does
  void (*lower)(PointLowering&, const Op&) = nullptr;  // the steps that stand for the op
  void (*forward)(const PointForward&) = nullptr;
  void (*reverse)(const PointReverse&) = nullptr;
  void (*tangent_forward)(const PointTangentForward&) = nullptr;
  void (*tangent_reverse)(const PointTangentReverse&) = nullptr;
  void (*hessian)(HessianSteps&, const PointStep&) = nullptr;  // its step on a GPU; null: there is none
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
  Function (*function)(const Op&);
  PointPasses points;
  Passes<float> f32;
  Passes<double> f64;
};

// At theta, as in a question.
template <typename T>
Call<T> call_of(const Forward<T>& p) {
  const Parameters<T> at(p.op, [&](int use) { return p.parameter(use); });
  return {p.op, p.program, p.kernels, p.cols, p.slots, at, nullptr, p.out};
}
inline const PointForward& call_of(const PointForward& p) { return p; }

// What holds for most ops.
template <class Own>
struct Rules {
  static constexpr bool in_place = false, point_lanes = false, combines = false, curves = false;
  static constexpr bool takes_epilogue = false;
  static bool takes_relu(const Op&) { return false; }
  static Epilogue epilogue(const Op&) { return Epilogue::kNone; }
  static constexpr Columns (*columns)(const Op&) = nullptr;
  static constexpr void (*resident)(ResidentStep&) = nullptr;
  static Function function(const Op&) { return {}; }
  static constexpr const char* no_points = nullptr;  // PointPasses::refusal
  static void lower(PointLowering& to, const Op& op) { to.add(PointStep(op)); }
  static constexpr void (*hessian)(HessianSteps&, const PointStep&) = nullptr;
  template <typename T>
  static void call_lanes(const Call<T>& c) {  // without parameters, a lane is a column like others
    Own::call(c);
  }
  template <typename T>
  static void check_data(const Op&, int64_t, int64_t, const T*) {}
  template <class P>
  static void forward(const P& p) {
    Own::call(call_of(p));
  }
  template <typename T>
  static void sample_gradients(const SampleGradients<T>&) {}  // no parameters
  template <typename T>
  static constexpr double (*form)(const TangentReverse<T>&) = nullptr;
};

// Of ops that stand for others in questions alone: derivatives never meet them.
template <class Own>
struct QuestionRules : Rules<Own> {
  template <typename T>
  static void reverse(const Reverse<T>&) {}
  template <typename T>
  static void tangent_forward(const TangentForward<T>&) {}
  template <typename T>
  static void tangent_reverse(const TangentReverse<T>&) {}
};

template <class Own, typename T>
constexpr Passes<T> passes_of() {
  return {&Own::call,
          &Own::call_lanes,
          &Own::check_data,
          &Own::forward,
          &Own::reverse,
          &Own::tangent_forward,
          &Own::tangent_reverse,
          &Own::sample_gradients,
          Own::template form<T>};
}

template <class Own>
constexpr PointPasses point_passes_of() {
  if constexpr (Own::no_points != nullptr)
    return {Own::no_points};
  else
    return {nullptr,
            &Own::lower,
            &Own::forward,
            &Own::reverse,
            &Own::tangent_forward,
            &Own::tangent_reverse,
            Own::hessian};
}

template <class Own>
constexpr OpEntry make_entry() {
  return {Own::in_place,
          Own::point_lanes,
          Own::combines,
          Own::curves,
          Own::takes_epilogue,
          Own::takes_relu,
          Own::epilogue,
          Own::columns,
          Own::resident,
          Own::function,
          point_passes_of<Own>(),
          passes_of<Own, float>(),
          passes_of<Own, double>()};
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
