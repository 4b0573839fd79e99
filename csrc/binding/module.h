// What the parts of the pybind11 module share.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

namespace pylandscape {

using Address = uintptr_t;
template <typename T>
const T* in(Address a) { return reinterpret_cast<const T*>(a); }
template <typename T>
T* out(Address a) { return reinterpret_cast<T*>(a); }

void bind_constants(pybind11::module_& m);
void bind_programs(pybind11::module_& m);
void bind_questions(pybind11::module_& m);  // this and those below: after the programs
void bind_lanczos(pybind11::module_& m);
void bind_points(pybind11::module_& m);
void bind_training(pybind11::module_& m);
void bind_topology(pybind11::module_& m);

}  // namespace pylandscape
