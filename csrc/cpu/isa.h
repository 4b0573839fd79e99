// Which instruction sets exist, and which one this process uses.
#pragma once

namespace pylandscape::cpu {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// Picked once, on first use, from the CPU and PYLANDSCAPE_CPU_CAPABILITY ("default", "avx2",
// "avx512"; a set that the CPU lacks, or an unknown name, throws std::runtime_error).
Isa isa();
const char* isa_name(Isa isa);

}  // namespace pylandscape::cpu
