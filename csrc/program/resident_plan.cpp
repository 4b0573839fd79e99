#include "program/resident_plan.h"

#include <algorithm>
#include <stdexcept>

#include "program/ops/entry.h"
#include "program/plan.h"

namespace pylandscape {
namespace {

using resident::Kind;
using resident::Step;

constexpr int64_t kRoom = 80 << 10;  // shared memory of a block of which an SM holds two
constexpr int64_t kFewSamples = 64;  // up to which points share a block
constexpr int32_t kAlign = 4;        // packed weights are read four at a time

int32_t narrow(int64_t x) {
  if (x < 0 || x > INT32_MAX / 2) throw std::invalid_argument("Program: too large for a block");
  return static_cast<int32_t>(x);
}

// offset(row, column) of a (rows, cols) weight, in the order in which a linear step reads it.
template <typename F>
void each_panel_element(int64_t rows, int64_t cols, F offset) {
  for (int64_t first = 0, left = rows; left > 0;) {
    int64_t width = resident::kWidest;
    while (width > left) width /= 2;
    for (int64_t k = 0; k < cols; ++k)
      for (int64_t r = 0; r < width; ++r) offset(first + r, k);
    first += width, left -= width;
  }
}

}  // namespace

template <typename T>
class ResidentPlanner final : ResidentPlaces {
 public:
  ResidentPlanner(const Program<T>& program, int64_t directions,
                  const std::optional<std::vector<std::vector<int>>>& moves)
      : p_(program), ops_(program.device_ops()), directions_(directions) {
    if (moves && moves->size() != program.uses_.size())
      throw std::invalid_argument("Program: expected the moves of every use");
    moves_.free_points = !moves;
    if (moves) moves_.directions = *moves;
  }

  ResidentPlan plan(int64_t shared_limit) {
    for (const Op& op : ops_)
      if (entry(op.kind).resident == nullptr || (op.kind == OpKind::kSoftmax && !op.bounds.empty()))
        found_.reason = "it has ops without a resident kernel";
    plan_ = plan_steps(p_, ops_, moves_, [](const Op&, int64_t) { return true; });
    for (const How how : plan_.how) found_.fixed.push_back(how == How::kStatic);
    place_rows();
    pack(shared_limit);
    for (size_t i = 0; i < ops_.size(); ++i)
      if (how(i) != How::kStatic && found_.reason.empty()) add_step(ops_[i], i);
    describe();
    if (found_.reason.empty()) choose_block(shared_limit);
    return std::move(found_);
  }

 private:
  bool moved(int use) const { return moves_.moved(p_, use); }
  How how(size_t op) const { return plan_.how[op]; }

  // Rows of the external matrix, and of the arena.
  void place_rows() {
    int64_t external = 0;
    external_.assign(p_.slots_.size(), -1);
    terms_.assign(ops_.size(), -1);
    for (size_t s = 0; s < p_.slots_.size(); ++s) {
      if (!plan_.kept[s]) continue;
      external_[s] = external, external += p_.slots_[s];
      found_.external.push_back({static_cast<int>(s), -1, false, {}});
    }
    for (size_t i = 0; i < ops_.size(); ++i) {
      if (how(i) != How::kCombine) continue;
      const Op& op = ops_[i];
      const std::vector<int>& moves = moves_.directions[op.weight];
      terms_[i] = external;
      external += (1 + static_cast<int64_t>(moves.size())) * op.outer * op.m;
      found_.external.push_back({op.inputs[0], static_cast<int>(i),
                                 op.bias >= 0 && !moved(op.bias), moves});
    }
    found_.program.external_rows = narrow(external);

    std::vector<bool> runs, reads;
    for (const How how : plan_.how) {
      runs.push_back(how != How::kStatic), reads.push_back(how == How::kKernel);
    }
    Arena arena = plan_arena(p_, ops_, runs, reads);
    arena_ = std::move(arena.place);
    found_.program.arena_rows = narrow(arena.rows);
  }

  // The weights that steps read, one use after the other.
  void pack(int64_t shared_limit) {
    std::vector<int> read;
    for (size_t i = 0; i < ops_.size(); ++i) {
      each_read(ops_[i], how(i), [&](int use) {
        if (how(i) == How::kKernel || moved(use)) read.push_back(use);  // z[0] has a fixed bias
      });
    }
    std::sort(read.begin(), read.end());
    read.erase(std::unique(read.begin(), read.end()), read.end());
    int64_t bytes = 0;
    for (const int use : read) bytes += p_.uses_[use].size() * static_cast<int64_t>(sizeof(T));
    if (!found_.reason.empty()) return;
    if (bytes > shared_limit) {
      found_.reason = "its weights take " + std::to_string(bytes) + " bytes of shared memory, of " +
                      std::to_string(shared_limit);
      return;
    }
    packed_.assign(p_.uses_.size(), -1);
    for (const int use : read) pack_use(use);
    found_.program.weights = narrow(static_cast<int64_t>(found_.list.size()));
  }

  void pack_use(int index) {
    const Use& use = p_.uses_[index];
    std::vector<int32_t>& list = found_.list;
    packed_[index] = narrow(static_cast<int64_t>(list.size()));
    const auto add = [&](int64_t offset) {
      list.push_back(use.source >= 0 ? narrow(use.source + offset)
                                     : -1 - narrow(-1 - use.source + offset));
    };
    if (use.packing == Use::Packing::kPanels || use.transposed())
      each_panel_element(use.rows, use.cols, [&](int64_t row, int64_t k) {
        add(use.transposed() ? k * use.rows + row : row * use.cols + k);
      });
    else
      for (int64_t i = 0; i < use.size(); ++i) add(i);
    while (list.size() % kAlign != 0) list.push_back(resident::kFill);
  }

  // Row `i` of a slot.
  int32_t row(int slot, int64_t i) const override {
    return plan_.dynamic[slot] ? narrow(arena_[slot] + i) : -1 - narrow(external_[slot] + i);
  }
  int32_t weight(int use) const override { return use < 0 ? -1 : packed_[use]; }

  void add_step(const Op& op, size_t i) {
    Step s{};
    s.out = row(op.output, 0), s.weight = -1, s.bias = -1;
    s.outer = narrow(op.outer), s.k = narrow(op.k), s.inner = narrow(op.inner);
    s.m = narrow(p_.slots_[op.output]);
    s.relu = op.relu, s.log = op.log, s.a = op.a, s.b = op.b;
    if (how(i) == How::kCombine) return combine(op, i, s);
    if (!op.inputs.empty()) s.x = row(op.inputs[0], 0);
    ResidentStep step{op, p_, *this, found_.list, s};
    entry(op.kind).resident(step);
    add(step.step);
  }

  void combine(const Op& op, size_t i, Step s) {
    const std::vector<int>& moves = moves_.directions[op.weight];
    s.kind = Kind::kCombine;
    s.x = -1 - narrow(terms_[i]);
    s.k = narrow(static_cast<int64_t>(moves.size()));
    s.index = narrow(static_cast<int64_t>(found_.list.size()));
    for (const int j : moves) found_.list.push_back(j);
    // The bias is one per row of each of `outer`: as many combinations, of some of the rows.
    const bool bias = op.bias >= 0 && moved(op.bias);
    s.bias = bias ? weight(op.bias) : -1;
    s.inner = bias ? narrow(op.m) : s.m;  // after how many rows the bias begins anew
    add(s);
  }

  void add(const Step& s) {
    resident::Program& to = found_.program;
    if (to.steps == resident::kMaxSteps) {
      found_.reason = "more than " + std::to_string(resident::kMaxSteps) + " steps";
      return;
    }
    to.step[to.steps++] = s;
    if (s.kind == Kind::kLinear)
      shares_ = std::max<int64_t>(shares_, int64_t{s.outer} * resident::Panels(s.m).count());
    else if (s.kind == Kind::kCombine)
      shares_ = std::max<int64_t>(shares_, s.m / resident::kWidest);
  }

  void describe() {
    resident::Program& to = found_.program;
    to.magic = resident::Program::kMagic;
    to.output = row(p_.output_, 0), to.features = narrow(p_.slots_[p_.output_]);
    to.index_size = narrow(static_cast<int64_t>(found_.list.size()));
    to.free_points = moves_.free_points;
    to.directions = narrow(moves_.free_points ? p_.n_ : directions_);
    to.samples = narrow(p_.samples_), to.target_rows = narrow(p_.target_rows_);
    to.loss = p_.loss_, to.loss.weight = nullptr, to.loss.pos_weight = nullptr;
    to.loss_weights = narrow(static_cast<int64_t>(p_.weight_.size()));
    to.pos_weights = narrow(static_cast<int64_t>(p_.pos_weight_.size()));
    to.class_targets = p_.index_.size() > 0;
  }

  // From shapes alone.
  void choose_block(int64_t limit) {
    resident::Program& to = found_.program;
    const auto bytes = [&](int64_t points, int64_t columns) {
      return resident::shared_bytes(to.weights, points, to.arena_rows, columns, sizeof(T));
    };
    const int64_t samples = to.samples, room = std::min(limit, kRoom);
    const auto use = [&](int64_t points, int64_t columns) {
      to.points = narrow(points), to.columns = narrow(columns);
      const int64_t most = resident::kMaxThreads / columns;
      to.groups = points > 1 ? 1 : narrow(std::clamp<int64_t>(shares_, 1, most));
    };
    for (int64_t points = resident::kMaxThreads / samples;
         samples <= kFewSamples && points > 1; --points) {
      const int64_t columns = round_up(points * samples, resident::kWarp);
      if (bytes(points, columns) <= room) return use(points, columns);
    }
    const int64_t tiles = (samples + resident::kMaxThreads - 1) / resident::kMaxThreads;
    const int64_t even = round_up((samples + tiles - 1) / tiles, resident::kWarp);
    for (const int64_t space : {room, limit})
      for (int64_t columns = even; columns > 0;
           columns = columns > resident::kWarp ? round_up(columns / 2, resident::kWarp) : 0) {
        if (space == room && columns < std::min<int64_t>(even, 2 * resident::kWarp)) break;
        if (bytes(1, columns) <= space) return use(1, columns);
      }
    found_.reason = "its values and weights take " + std::to_string(bytes(1, resident::kWarp)) +
                    " bytes of shared memory for 32 samples, of " + std::to_string(limit);
  }

  const Program<T>& p_;
  const std::vector<Op> ops_;
  Moves moves_;
  int64_t directions_;
  ResidentPlan found_;
  StepPlan plan_;
  std::vector<int64_t> external_, arena_;      // by slot: first row, or -1
  std::vector<int64_t> terms_;                 // by op
  std::vector<int32_t> packed_;                // by use
  int64_t shares_ = 1;  // into how many parts the largest step falls
};

template <typename T>
ResidentPlan plan_resident(const Program<T>& program, int64_t directions,
                           const std::optional<std::vector<std::vector<int>>>& moves,
                           int64_t shared_limit) {
  return ResidentPlanner<T>(program, directions, moves).plan(shared_limit);
}

template ResidentPlan plan_resident(const Program<float>&, int64_t,
                                    const std::optional<std::vector<std::vector<int>>>&, int64_t);
template ResidentPlan plan_resident(const Program<double>&, int64_t,
                                    const std::optional<std::vector<std::vector<int>>>&, int64_t);

}  // namespace pylandscape
