#include "points/hessian_plan.h"

#include <algorithm>

#include "points/hessian_steps.h"
#include "program/ops/entry.h"

namespace pylandscape {
namespace {

constexpr int64_t kReserved = 1 << 10;    // of shared memory, by the system for each block
constexpr int64_t kWarpColumns = 64;      // samples times tangents that a warp takes
constexpr int64_t kBlockPlaces = 128;     // parameters up to which 128 threads are a team
constexpr int64_t kGradientColumns = 128;

}  // namespace

class HessianPlanner : HessianSteps {
 public:
  HessianPlanner(const Points& points, bool second)
      : HessianSteps(points.slots_, points.n_, points.program_.constants()),
        p_(points),
        second_(second) {}

  HessianPlan plan(int64_t shared_limit) {
    try {
      place_data();
      for (const PointStep& step : p_.steps_) {
        const auto write = step.passes->hessian;
        if (write == nullptr) refuse("an op without a kernel");
        write(*this, step);
      }
      describe();
      number_parameters();
      make_items();
      choose_block(shared_limit);
      make_tables();
      found_.list = std::move(list_), found_.constants = std::move(constants_);
    } catch (const Refusal& refusal) {
      found_.reason = refusal.reason;
    }
    return std::move(found_);
  }

 private:
  using Step = hessian::Step;

  void place_data() {
    rows_ = 1;
    place(0, narrow(take_rows(features(0))));
    found_.program.features = narrow(features(0)), found_.program.first = narrow(rows_);
    if (!slots_.moves[p_.output_]) refuse("outputs that no parameter reaches");
  }

  void describe() {
    hessian::Program& out = found_.program;
    const Program<double>& p = p_.program_;
    out.magic = hessian::Program::kMagic;
    out.steps = narrow(static_cast<int64_t>(steps_.size()));
    out.rows = narrow(rows_), out.bent_rows = narrow(p_.bent_rows_);
    out.output = row(p_.output_), out.outputs = narrow(features(p_.output_));
    out.n = narrow(n_);
    out.source = narrow(n_ + static_cast<int64_t>(constants_.size()));
    out.samples = narrow(p.samples_), out.target_rows = narrow(p.target_rows_);
    out.loss = p.loss_;
    out.loss_weights = narrow(static_cast<int64_t>(p.weight_.size()));
    out.pos_weights = narrow(static_cast<int64_t>(p.pos_weight_.size()));
    out.class_targets = p.index_.size() > 0;
    out.loss.weight = out.loss.pos_weight = nullptr;
    if (out.loss.kind > cpu::Loss::kMse) out.kept_rows = out.outputs;  // curvatures
    if (out.loss.kind == cpu::Loss::kCrossEntropy)
      out.kept_rows = narrow(out.outputs + out.loss.outer * out.loss.inner);
  }

  // Places: the parameters in the order of steps, rows and columns.
  void number_parameters() {
    for (Step& s : steps_) {
      s.place = narrow(static_cast<int64_t>(parameter_.size()));
      if (s.columns == 0) continue;
      for (int32_t r = 0; r < s.m; ++r)
        for (int32_t q = 0; q < s.columns; ++q)
          parameter_.push_back(q < s.inputs ? s.weight + r * s.row + q * s.column : s.bias + r);
      most_tangents_ += int64_t{s.outer} * s.m;
    }
    if (static_cast<int64_t>(parameter_.size()) != n_)
      refuse("parameters that do not reach the loss");
  }

  void make_items() {
    hessian::Program& out = found_.program;
    for (size_t i = 0; i < steps_.size(); ++i) {
      Step& s = steps_[i];
      s.item = narrow(static_cast<int64_t>(items_.size()));
      for (int32_t r = 0; r < (s.columns > 0 ? s.m : 0); ++r)
        for (int32_t q = 0; q < s.columns; q += hessian::kNarrow)
          items_.push_back({static_cast<int32_t>(i), s.out + r, q, s.place + r * s.columns + q});
    }
    out.items = narrow(static_cast<int64_t>(items_.size()));
  }

  // Doubles of a row of the Hessian of a step's parameter, from the step's first place on. Odd.
  int64_t width(const Step& s) const { return (n_ - s.place) | 1; }

  int64_t bytes() const {
    int64_t size = hessian::Layout(found_.program).total;
    return int64_t{sizeof(double)} * size * found_.program.points;
  }
  bool fits(int64_t room) const {
    const hessian::Program& p = found_.program;
    // Beyond this, the layout's sums could overflow.
    const double rows = double(p.rows) * double(p.columns) * double(2 + 2 * p.tangents);
    return rows + double(p.source) + double(p.buffer) < 1e8 && bytes() <= room;
  }

  void choose_block(int64_t limit) {
    hessian::Program& p = found_.program;
    const int64_t samples = p.samples;
    const auto share = [&](int64_t blocks) { return (limit + kReserved) / blocks - kReserved; };
    int64_t whole = 0, largest = 0;
    for (const Step& s : steps_) {
      if (s.columns == 0) continue;
      whole += int64_t{s.m} * s.columns * width(s);
      largest = std::max(largest, s.columns * width(s));
    }
    p.columns = narrow(std::min<int64_t>(samples, hessian::kGroup));
    p.points = hessian::kMaxThreads / hessian::kWarp, p.threads = hessian::kWarp, p.batches = 1;
    if (!second_) {
      if (samples <= kWarpColumns && (p.columns = narrow(samples), fits(share(2)))) return;
      p.points = 1;
      return choose_gradient(limit, share(3), share(2));
    }
    p.tangents = narrow(most_tangents_), p.buffer = narrow(whole);
    if (samples <= hessian::kGroup && most_tangents_ * samples <= kWarpColumns && fits(share(2)))
      return;
    p.points = 1, p.threads = n_ > kBlockPlaces ? hessian::kMaxThreads : hessian::kMaxThreads / 2;
    const int64_t most = std::clamp<int64_t>(p.threads / p.columns, 1, most_tangents_);
    p.tangents = narrow(most);
    for (const int64_t room : {share(4), share(3), share(2), limit})
      if (fits(room)) return;
    for (const int64_t room : {share(2), limit})
      for (int64_t tangents = most; tangents > 0; --tangents) {
        p.tangents = narrow(tangents), p.buffer = 0;
        const int64_t left = fits(room) ? (room - bytes()) / int64_t{sizeof(double)} : -1;
        if (left < std::min(tangents * largest, whole)) continue;
        p.buffer = narrow(left);
        return;
      }
    p.tangents = 1, p.buffer = narrow(largest);
    too_large(limit);
  }

  void choose_gradient(int64_t limit, int64_t third, int64_t half) {
    hessian::Program& p = found_.program;
    const int64_t samples = p.samples, group = hessian::kGroup;
    p.threads = hessian::kMaxThreads / 2;
    for (const int64_t room : {third, half, limit})
      for (int64_t columns = kGradientColumns; columns >= group; columns /= 2) {
        if (room != limit && columns < kGradientColumns && samples > columns) break;
        p.columns = narrow(std::min(columns, samples));
        if (fits(room)) return;
      }
    too_large(limit);
  }

  [[noreturn]] void too_large(int64_t limit) const {
    refuse("a point takes " + std::to_string(bytes()) + " bytes of shared memory, of " +
                  std::to_string(limit));
  }

  struct Key {  // a row of a step, of all of `outer`
    int32_t step, row, at;
  };

  // Batches of keys whose entries fit the buffer, and their rounds.
  void make_tables() {
    hessian::Program& p = found_.program;
    std::vector<std::vector<Key>> batches(1);
    int64_t used = 0, most = 0;
    for (size_t i = 0; second_ && i < steps_.size(); ++i) {
      const Step& s = steps_[i];
      for (int32_t r = 0; r < (s.columns > 0 ? s.m : 0); ++r) {
        const int64_t size = s.columns * width(s);
        if (used + size > p.buffer) batches.emplace_back(), used = 0;
        batches.back().push_back({static_cast<int32_t>(i), r, narrow(used)});
        used += size, most = std::max(most, used);
      }
    }
    p.buffer = narrow(most), p.batches = narrow(static_cast<int64_t>(batches.size()));
    std::vector<hessian::Tangent> tangents;
    std::vector<hessian::Round> rounds;
    std::vector<hessian::Entries> rows;
    std::vector<hessian::Batch> table;
    const auto count = [](const auto& v) { return narrow(static_cast<int64_t>(v.size())); };
    for (const std::vector<Key>& batch : batches) {
      const int32_t first_round = count(rounds), first_row = count(rows);
      add_rounds(batch, tangents, rounds);
      for (const Key& key : batch) {
        const Step& s = steps_[key.step];
        for (int32_t j = 0; j < s.columns; ++j)
          rows.push_back({s.place + key.row * s.columns + j,
                          narrow(key.at + j * width(s) - s.place)});
      }
      table.push_back({first_round, count(rounds) - first_round, first_row, count(rows) - first_row});
    }
    p.item_table = append(items_), p.tangent_table = append(tangents);
    p.round_table = append(rounds), p.batch_table = append(table), p.row_table = append(rows);
    p.parameter_table = append(parameter_);
    p.list_size = narrow(static_cast<int64_t>(list_.size()));
    std::copy(steps_.begin(), steps_.end(), p.step);
  }

  // Rows of one key never run in one round: their entries are the same.
  void add_rounds(const std::vector<Key>& batch, std::vector<hessian::Tangent>& tangents,
                  std::vector<hessian::Round>& rounds) const {
    int32_t count = 0;  // of the last round
    const auto finish = [&] {
      if (count == 0) return;
      rounds.push_back({narrow(static_cast<int64_t>(tangents.size()) - count), count});
      count = 0;
    };
    for (size_t from = 0, to = 0; from < batch.size(); from = to) {
      const Step& s = steps_[batch[from].step];
      while (to < batch.size() && batch[to].step == batch[from].step) ++to;
      for (int32_t o = 0; o < s.outer; ++o) {
        if (o > 0) finish();
        for (size_t i = from; i < to; ++i) {
          if (count == found_.program.tangents) finish();
          tangents.push_back({batch[i].step, s.out + o * s.m + batch[i].row, s.x + o * s.k,
                              batch[i].at});
          ++count;
        }
      }
    }
    finish();
  }

  template <typename T>
  int32_t append(const std::vector<T>& table) {
    static_assert(sizeof(T) % sizeof(int32_t) == 0);
    while (list_.size() % 4 != 0) list_.push_back(0);
    const int32_t from = narrow(static_cast<int64_t>(list_.size()));
    const auto* words = reinterpret_cast<const int32_t*>(table.data());
    list_.insert(list_.end(), words, words + table.size() * sizeof(T) / 4);
    return from;
  }

  const Points& p_;
  bool second_;
  HessianPlan found_;
  std::vector<int32_t> parameter_;  // by place: where in theta
  std::vector<hessian::Item> items_;
  int64_t most_tangents_ = 0;
};

HessianPlan plan_hessians(const Points& points, bool second, int64_t shared_limit) {
  return HessianPlanner(points, second).plan(shared_limit);
}

}  // namespace pylandscape
