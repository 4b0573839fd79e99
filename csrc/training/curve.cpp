#include "training/curve.h"

#include <algorithm>
#include <numeric>

#include "derivatives/parameters.h"
#include "program/items.h"

namespace pylandscape {
namespace {

constexpr int64_t kGroups = 8;               // independent sums over tiles
constexpr int64_t kKeptBytes = 256 << 20;    // of the ends' products

}  // namespace

template <typename T>
CurveGradient<T>::CurveGradient(const Program<T>& program, const double* counts,
                                const double* ends)
    : program_(program),
      kernels_(program.kernels_),
      n_(program.n_),
      widest_(widest_tile(program, kernels_.vector_length, sizeof(T))),
      layout_(program, widest_, kernels_.vector_length),
      batches_(program, counts, widest_,
               data_columns(program, layout_, widest_, kernels_.vector_length)),
      place_(program.ops_.size(), -1),
      ends_(ends, ends + 2 * program.n_) {
  std::vector<int64_t> all(program.samples_);
  std::iota(all.begin(), all.end(), int64_t{0});
  batches_.gather(program.samples_, all.data(), data_);
  std::vector<bool> own(n_, false);  // parameters that the passes of every point differentiate
  for (size_t i = 0; i < program.ops_.size(); ++i) {
    const Op& op = program.ops_[i];
    const bool shared = op.kind == OpKind::kLinear && op.inputs[0] == 0 &&
                        program.in_theta(op.weight);
    if (shared) {
      place_[i] = static_cast<int>(shared_.size());
      shared_.push_back({i, shared_rows_});
      shared_rows_ += op.outer * op.m;
    }
    op.each_use([&](int number) {
      const Use& use = program.uses_[number];
      if (use.source < 0 || (shared && number == op.weight)) return;
      std::fill_n(own.begin() + use.source, use.size(), true);
    });
  }
  for (int64_t i = 0; i < n_; ++i) {
    if (!own[i]) continue;
    if (ranges_.empty() || ranges_.back().last < i) ranges_.push_back({i, i});
    ranges_.back().last = i + 1;
  }
  std::vector<T> vertex(n_);
  for (int64_t i = 0; i < n_; ++i) vertex[i] = static_cast<T>(ends_[i]);
  pack_parameters<T>(program_, layout_, vertex.data(), nullptr, fixed_[0]);
  for (int64_t i = 0; i < n_; ++i) vertex[i] = static_cast<T>(ends_[n_ + i] - ends_[i]);
  pack_parameters<T>(program_, layout_, vertex.data(), nullptr, fixed_[1]);
  const int64_t size = 2 * data_.tiles * shared_rows_ * data_.tile;
  if (size * int64_t{sizeof(T)} <= kKeptBytes) kept_ = Buffer<T>(size);
}

template <typename T>
Pass<T> CurveGradient<T>::pass(int64_t number, const Vector<T>& theta, const Work& work,
                               size_t i) const {
  return {program_,
          layout_,
          kernels_,
          theta,
          work.primal,
          batches_.data(data_, number),
          widest_,
          batches_.padded(data_, number),
          batches_.columns(data_, number),
          i,
          program_.ops_[i],
          batches_.columns_of(data_, number),
          nullptr,
          work.late.data()};
}

template <typename T>
void CurveGradient<T>::prepare(Work& work, int64_t bends) const {
  const int64_t products = shared_rows_ * data_.tile;
  if (work.primal.values.size() == 0) {
    const int64_t size = layout_.rows * widest_, bent = layout_.bent_rows * widest_;
    work.primal = {Buffer<T>(size), Buffer<T>(size), Buffer<T>(bent),
                   Buffer<T>(bent), Buffer<T>(),     Buffer<T>(layout_.panels)};
    work.late = Buffer<T>(std::max<int64_t>(layout_.most_columns, 1));
    work.terms.resize(widest_), work.own.resize(n_);
  }
  if (work.products.size() < (bends + 2) * products)
    work.products = Buffer<T>((bends + 2) * products), work.mixed = Buffer<T>(bends * products);
}

// W x of the shared ops, one after the other.
template <typename T>
void CurveGradient<T>::multiply(const Vector<T>& vertex, int64_t tile, T* products) const {
  const int64_t cols = batches_.padded(data_, tile);
  for (const Shared& shared : shared_) {
    const Op& op = program_.ops_[shared.op];
    for (int64_t o = 0; o < op.outer; ++o)
      kernels_.linear(op.m, cols, op.k, vertex.packed.data() + program_.uses_[op.weight].packed,
                      batches_.data(data_, tile) + (op.first(0) + o * op.k) * cols, nullptr, false,
                      products + (shared.row + o * op.m) * cols);
  }
}

template <typename T>
void CurveGradient<T>::forward(const Mixture& q, int64_t point, int64_t number,
                               const T* const* products, Work& work) const {
  std::vector<T> share;  // of the last vertex, then of the free ones
  share.push_back(static_cast<T>(q.weight(point, q.bends + 1)));
  for (int64_t k = 0; k < q.bends; ++k) share.push_back(static_cast<T>(q.weight(point, 1 + k)));
  work.slots.assign(program_.slots_.size(), nullptr);
  work.slots[0] = batches_.data(data_, number);
  for (size_t i = 0; i < program_.ops_.size(); ++i) {
    const Forward<T> at(pass(number, thetas_[point], work, i), work.primal, work.slots.data());
    work.slots[at.op.output] = at.out;
    if (place_[i] < 0) {
      passes<T>(at.op.kind).forward(at);
      continue;
    }
    const int64_t row = shared_[place_[i]].row, m = at.op.m;
    for (int64_t o = 0; o < at.op.outer; ++o) {
      work.z.clear();
      for (int64_t v = 0; v < q.bends + 2; ++v)
        work.z.push_back(products[v] + (row + o * m) * at.cols);
      kernels_.combine(m, at.cols, q.bends + 1, work.z.data(), share.data(),
                       at.parameter(at.op.bias), at.op.relu, at.out + o * m * at.cols);
    }
  }
}

// From the output's adjoints: own += the gradient but for the shared weights, whose adjoints are
// mixed.
template <typename T>
void CurveGradient<T>::reverse(const Mixture& q, int64_t point, int64_t number,
                               Work& work) const {
  for (size_t i = program_.ops_.size(); i-- > 0;) {
    const Op& op = program_.ops_[i];
    if (!layout_.moves[op.output]) continue;
    const Reverse<T> at(pass(number, thetas_[point], work, i), work.primal.adjoints,
                        work.primal.panels.data(), work.own.data());
    if (op.relu) kernels_.mask(at.size(), at.y(), at.dy);
    if (place_[i] < 0) {
      passes<T>(op.kind).reverse(at);
      continue;
    }
    if (at.db != nullptr)
      for (int64_t o = 0; o < op.outer; ++o)
        kernels_.row_sums_add(op.m, at.cols, at.dy + o * op.m * at.cols, at.db);
    for (int64_t k = 0; k < q.bends; ++k)
      kernels_.product_add(at.size(), static_cast<T>(q.weight(point, 1 + k)), at.dy, nullptr,
                           work.mixed.data() + k * shared_rows_ * data_.tile +
                               shared_[place_[i]].row * at.cols);
  }
}

template <typename T>
void CurveGradient<T>::tile(const Mixture& q, int64_t number, Work& work, double* losses,
                            double* sums) {
  const Program<T>& p = program_;
  const int64_t products = shared_rows_ * data_.tile;
  std::vector<T*> vertices;  // the first, the last, the free ones
  for (int64_t end = 0; end < 2; ++end) {
    const bool keeps = kept_.size() > 0;
    vertices.push_back(keeps ? kept(number, end) : work.products.data() + end * products);
    if (!keeps || !known_) multiply(fixed_[end], number, vertices.back());
  }
  for (int64_t k = 0; k < q.bends; ++k) {
    vertices.push_back(work.products.data() + (2 + k) * products);
    multiply(free_[k], number, vertices.back());
  }
  std::fill_n(work.mixed.data(), q.bends * products, T(0));
  const int64_t cols = batches_.padded(data_, number), samples = batches_.columns(data_, number);
  const cpu::Targets targets = batches_.targets(data_, number);
  for (int64_t s = 0; s < q.points; ++s) {
    forward(q, s, number, vertices.data(), work);
    const T* output = work.slots[p.output_];
    kernels_.loss(p.loss_, targets, cols, output, work.terms.data(), nullptr);
    losses[s] += std::accumulate(work.terms.begin(), work.terms.begin() + samples, 0.0);
    if (!layout_.moves[p.output_]) continue;  // no parameter reaches the output
    for (size_t slot = 1; slot < p.slots_.size(); ++slot)
      if (layout_.row[slot] >= 0 && layout_.moves[slot])
        std::fill_n(work.primal.adjoints.data() + layout_.row[slot] * widest_,
                    p.slots_[slot] * cols, T(0));
    T* seed = work.primal.adjoints.data() + layout_.row[p.output_] * widest_;
    kernels_.loss_gradient(p.loss_, targets, cols, output, seed);
    for (int64_t f = 0; f < p.slots_[p.output_]; ++f)  // a padding column weighs nothing
      std::fill(seed + f * cols + samples, seed + (f + 1) * cols, T(0));
    for (const Range& r : ranges_)
      std::fill(work.own.begin() + r.first, work.own.begin() + r.last, 0.0);
    reverse(q, s, number, work);
    for (int64_t k = 0; k < q.bends; ++k)
      for (const Range& r : ranges_)
        for (int64_t i = r.first; i < r.last; ++i)
          sums[k * n_ + i] += q.weight(s, 1 + k) * work.own[i];
  }
  for (int64_t k = 0; k < q.bends; ++k)
    for (const Shared& shared : shared_) {
      Reverse<T> at(pass(number, thetas_[0], work, shared.op), work.primal.adjoints,
                    work.primal.panels.data(), sums + k * n_);
      at.dy = work.mixed.data() + k * products + shared.row * cols;
      at.db = nullptr;  // met at every point
      passes<T>(at.op.kind).reverse(at);
    }
}

template <typename T>
bool CurveGradient<T>::run(int64_t points, int64_t bends, const double* weights,
                           const double* free, double* losses, double* slopes,
                           const Parallel& parallel, const ShouldStop& stop) {
  const std::lock_guard<std::mutex> one_at_a_time(busy_);
  const Mixture q{points, bends, weights};
  const auto before = static_cast<int64_t>(thetas_.size());
  if (before < points) thetas_.resize(points);
  if (static_cast<int64_t>(free_.size()) < bends) free_.resize(bends);
  if (works_.size() < static_cast<size_t>(std::max<int64_t>(parallel.workers, 1)))
    works_.resize(parallel.workers);
  Items packing(points + bends, parallel, stop);
  const bool packed = packing.run([&](int, int64_t item) {
    std::vector<T> at(n_);
    const int64_t k = item - points;
    for (int64_t i = 0; i < n_; ++i) {
      double sum = k >= 0 ? free[k * n_ + i] - ends_[i] : 0.0;
      if (k < 0) {
        sum = q.weight(item, 0) * ends_[i] + q.weight(item, bends + 1) * ends_[n_ + i];
        for (int64_t j = 0; j < bends; ++j) sum += q.weight(item, 1 + j) * free[j * n_ + i];
      }
      at[i] = static_cast<T>(sum);
    }
    const bool fresh = k < 0 && thetas_[item].packed.size() == 0;
    pack_parameters<T>(program_, layout_, at.data(), fresh ? program_.constants_.data() : nullptr,
                       k < 0 ? thetas_[item] : free_[k]);
  });
  if (!packed) return false;
  const int64_t groups = std::min(kGroups, data_.tiles), size = points + bends * n_;
  std::vector<double> sums(groups * size, 0.0);  // of a group: losses, then slopes
  Items items(groups, parallel, stop);
  const bool done = items.run([&](int worker, int64_t group) {
    Work& work = works_[worker];
    prepare(work, bends);
    double* own = sums.data() + group * size;
    const int64_t last = (group + 1) * data_.tiles / groups;
    for (int64_t t = group * data_.tiles / groups; t < last && !items.stopping(); ++t)
      tile(q, t, work, own, own + points);
  });
  if (!done) return false;
  known_ = true;
  const double share = data_.scale;
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0;
    for (int64_t g = 0; g < groups; ++g) sum += sums[g * size + i];
    if (i < points)
      losses[i] = sum / data_.denominator;
    else
      slopes[i - points] = sum * share;
  }
  return true;
}

template class CurveGradient<float>;
template class CurveGradient<double>;

}  // namespace pylandscape
