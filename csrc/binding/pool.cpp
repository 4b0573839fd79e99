#include "binding/pool.h"

#include <torch/csrc/stable/ops.h>

namespace pylandscape {

Parallel torch_pool() {
  const int workers = static_cast<int>(torch::stable::get_num_threads());
  return {workers, [workers](const std::function<void(int)>& body) {
            torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
              for (int64_t w = first; w < last; ++w) body(static_cast<int>(w));
            });
          }};
}

}  // namespace pylandscape
