// The CUDA twins of the ops in ops.cpp. Nothing here links libtorch_cuda: the one function of it
// that is needed is looked up in the copy that `import torch` loaded, so this file builds against
// a CPU torch and the result loads beside one.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "binding/direction_ops.h"
#include "cuda/directions.h"

namespace pylandscape {
namespace {

namespace ts = torch::stable;

using GetStream = AOTITorchError (*)(int32_t device, void** stream);

GetStream torch_get_stream() {
  static const GetStream found = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol =
        library != nullptr ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<GetStream>(symbol);
  }();
  return found;
}

void check(cudaError_t error) {
  expect(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
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

  // A copy of source (count,), host memory that is free afterwards, in device memory beside `on`.
  template <typename T>
  Tensor upload(const Tensor& on, const T* source, size_t count) const {
    const size_t bytes = count * sizeof(T);
    Tensor memory = ts::new_empty(on, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
    if (bytes > 0)
      check(cudaMemcpyAsync(memory.mutable_data_ptr(), source, bytes, cudaMemcpyHostToDevice,
                            stream_));
    return memory;
  }

 private:
  ts::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

struct Cuda {
  static constexpr bool kHasData = true;

  template <typename T>
  static void make(Tensor& out, const Tensor* direction, const Tensor& theta,
                   const Tensor& segments, Mode mode, int64_t seed, int64_t stream) {
    const Launch launch(out);
    const cuda::Plan plan(out.size(0), segments.const_data_ptr<int64_t>(), segments.size(0), mode);
    const Tensor ranges = launch.upload(out, plan.ranges.data(), plan.ranges.size());
    Tensor work = ts::new_empty(
        out, {2 * plan.count(cuda::Plan::kChunk) + plan.count(cuda::Plan::kOwner)},
        ScalarType::Double);
    cuda::DirectionArgs<T> args{};
    args.out = out.mutable_data_ptr<T>();
    args.direction = direction != nullptr ? direction->const_data_ptr<T>() : nullptr;
    args.theta = theta.const_data_ptr<T>();
    args.mode = mode;
    args.seed = static_cast<uint64_t>(seed), args.stream = static_cast<uint64_t>(stream);
    check(cuda::make_direction(args, plan,
                               static_cast<const cuda::Range*>(ranges.const_data_ptr()),
                               work.mutable_data_ptr<double>(), launch.stream()));
  }

  static void gaussian(uint64_t seed, uint64_t stream, int64_t first, Tensor& out) {
    const Launch launch(out);
    check(cuda::gaussian(seed, stream, first, out.size(0), out.mutable_data_ptr<float>(),
                         launch.stream()));
  }

  template <typename T>
  static void perturb(const Tensor& theta, const Tensor& coefficients, const Tensor& directions,
                      Tensor& out) {
    const Launch launch(out);
    const double* c = coefficients.const_data_ptr<double>();
    const std::vector<T> host(c, c + coefficients.numel());
    const Tensor device = launch.upload(out, host.data(), host.size());
    check(cuda::perturb(out.size(0), directions.size(0), out.size(1), theta.const_data_ptr<T>(),
                        static_cast<const T*>(device.const_data_ptr()),
                        directions.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                        launch.stream()));
  }
};

// Whether torch can use CUDA, what the driver says (a cudaError_t) and how many GPUs there are.
std::tuple<bool, int64_t, int64_t> cuda_status() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return {torch_get_stream() != nullptr, static_cast<int64_t>(error), int64_t{count}};
}

}  // namespace
}  // namespace pylandscape

STABLE_TORCH_LIBRARY_FRAGMENT(pylandscape, m) { m.def("cuda_status() -> (bool, int, int)"); }
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CUDA, m) { pylandscape::implement<pylandscape::Cuda>(m); }
STABLE_TORCH_LIBRARY_IMPL(pylandscape, CompositeExplicitAutograd, m) {
  m.impl("cuda_status", TORCH_BOX(&pylandscape::cuda_status));
}
