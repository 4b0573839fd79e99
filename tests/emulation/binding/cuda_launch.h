// Stands for csrc/binding/cuda_launch.h: tensors of the CPU, no stream, nothing to wait for.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>

#include "binding/direction_ops.h"

namespace pylandscape {

inline void check(cudaError_t error) {
  expect(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

inline int64_t emulated_blocks = 8;

class Launch {
 public:
  explicit Launch(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  int64_t blocks() const { return emulated_blocks; }

  template <typename T>
  Tensor upload(const Tensor& on, const T* source, size_t count) const {
    const size_t bytes = count * sizeof(T);
    Tensor memory =
        torch::stable::new_empty(on, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
    if (bytes > 0) std::memcpy(memory.mutable_data_ptr(), source, bytes);
    return memory;
  }
};

}  // namespace pylandscape
