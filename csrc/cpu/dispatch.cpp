#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/directions.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/points.h"

namespace pylandscape::cpu {
namespace {

Isa best() {
#if defined(PYLANDSCAPE_HAVE_X86_ISA)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa pick() {
  const Isa have = best();
  const char* env = std::getenv("PYLANDSCAPE_CPU_CAPABILITY");
  if (env == nullptr || *env == '\0') return have;
  for (const Isa want : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (std::string(env) != isa_name(want)) continue;
    if (want <= have) return want;
    throw std::runtime_error(std::string("PYLANDSCAPE_CPU_CAPABILITY=") + env +
                             ": this CPU supports at most " + isa_name(have));
  }
  throw std::runtime_error(std::string("PYLANDSCAPE_CPU_CAPABILITY=") + env +
                           ": expected default, avx2 or avx512");
}

}  // namespace

Isa isa() {
  static const Isa picked = pick();
  return picked;
}

const char* isa_name(Isa isa) {
  constexpr const char* kNames[] = {"default", "avx2", "avx512"};
  return kNames[static_cast<int>(isa)];
}

#if defined(PYLANDSCAPE_HAVE_X86_ISA)
#define PL_PICK(name)                                              \
  isa() == Isa::kAvx512 ? avx512::name : isa() == Isa::kAvx2 ? avx2::name : baseline::name
#else
#define PL_PICK(name) baseline::name
#endif

template <>
const Kernels<float>& kernels<float>() {
  static const Kernels<float>& table = PL_PICK(kernels_f32);
  return table;
}
template <>
const Kernels<double>& kernels<double>() {
  static const Kernels<double>& table = PL_PICK(kernels_f64);
  return table;
}
template <>
const DirectionKernels<float>& direction_kernels<float>() {
  static const DirectionKernels<float>& table = PL_PICK(directions_f32);
  return table;
}
template <>
const DirectionKernels<double>& direction_kernels<double>() {
  static const DirectionKernels<double>& table = PL_PICK(directions_f64);
  return table;
}

const PointKernels& point_kernels() {
  static const PointKernels& table = PL_PICK(points);
  return table;
}

}  // namespace pylandscape::cpu
