// Where CUDA work goes: torch's current stream of the tensor's device. Nothing here links
// libtorch_cuda: the one function of it that is needed is looked up in the copy that `import torch`
// loaded, so the file builds against a CPU torch and the result loads beside one.
#pragma once
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "binding/direction_ops.h"

namespace pylandscape {

using GetStream = AOTITorchError (*)(int32_t device, void** stream);

inline GetStream torch_get_stream() {
  static const GetStream found = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol =
        library != nullptr ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<GetStream>(symbol);
  }();
  return found;
}

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // it is told here, not by the next launch
  expect(false, "CUDA: ", cudaGetErrorString(error));
}

// Makes the tensor's device the current one, and knows torch's current stream on it.
class Launch {
 public:
  explicit Launch(const Tensor& on) : guard_(on.get_device_index()) {
    expect(torch_get_stream() != nullptr, "CUDA: this torch has no CUDA support");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_get_stream()(on.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }
  // About how many blocks the device runs at once.
  int64_t blocks() const {
    constexpr int64_t kEach = 8;  // of a multiprocessor
    int device = 0, count = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return kEach * count;
  }

  // A copy of source (count,), host memory that is free afterwards, in device memory beside `on`.
  // Refused while a graph is captured, which would read that memory again at every replay.
  template <typename T>
  Tensor upload(const Tensor& on, const T* source, size_t count) const {
    const size_t bytes = count * sizeof(T);
    Tensor memory = torch::stable::new_empty(on, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
    if (bytes == 0) return memory;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream_, &capture));
    expect(capture == cudaStreamCaptureStatusNone,
           "CUDA: this op reads host memory and cannot be captured in a graph");
    check(cudaMemcpyAsync(memory.mutable_data_ptr(), source, bytes, cudaMemcpyHostToDevice,
                          stream_));
    return memory;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace pylandscape
