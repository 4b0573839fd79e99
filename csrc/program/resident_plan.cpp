#include "program/resident_plan.h"

#include <algorithm>
#include <stdexcept>

namespace pylandscape {
namespace {

using resident::Kind;
using resident::Step;

constexpr int64_t kRoom = 80 << 10;  // shared memory of a block of which an SM holds two
constexpr int64_t kFewSamples = 64;  // up to which points share a block
constexpr int32_t kAlign = 4;        // packed weights are read four at a time

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

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

bool in_place(OpKind kind) {
  return kind == OpKind::kUnary || kind == OpKind::kBinary || kind == OpKind::kSoftmax ||
         kind == OpKind::kLayerNorm;
}

}  // namespace

template <typename T>
class ResidentPlanner {
 public:
  using Moves = std::optional<std::vector<std::vector<int>>>;

  ResidentPlanner(const Program<T>& program, int64_t directions, const Moves& moves)
      : p_(program), moves_(moves), directions_(directions) {
    if (moves && moves->size() != program.uses_.size())
      throw std::invalid_argument("Program: expected the moves of every use");
  }

  ResidentPlan plan(int64_t shared_limit) {
    for (const Op& op : p_.fused_)
      if (found_.reason.empty()) check(op);
    choose_steps();
    place_rows();
    pack(shared_limit);
    for (size_t i = 0; i < p_.fused_.size(); ++i)
      if (how_[i] != How::kStatic && found_.reason.empty()) add_step(p_.fused_[i], i);
    describe();
    if (found_.reason.empty()) choose_block(shared_limit);
    return std::move(found_);
  }

 private:
  enum class How { kStatic, kKernel, kCombine };

  void check(const Op& op) {
    switch (op.kind) {
      case OpKind::kLinear:
      case OpKind::kUnary:
      case OpKind::kBinary:
      case OpKind::kLayerNorm:
      case OpKind::kSoftmax:
      case OpKind::kConcat:
      case OpKind::kExpand:
      case OpKind::kGather: return;
      default: found_.reason = "it has ops without a resident kernel";
    }
  }

  bool moved(int use) const {
    if (!moves_) return p_.uses_[use].source >= 0;
    return !(*moves_)[use].empty();
  }

  // As Question::plan_steps: what no point changes is static; a linear op on it is combined where
  // that is less work than the product.
  void choose_steps() {
    dynamic_.assign(p_.slots_.size(), false);
    needed_.assign(p_.slots_.size(), false);
    for (const Op& op : p_.fused_) {
      bool on_dynamic = false, any = false;
      op.each_use([&](int use) { any = any || moved(use); });
      for (const int x : op.inputs) on_dynamic = on_dynamic || dynamic_[x];
      // A batch's own statistics are of its samples alone: never computed over all of them.
      How how = on_dynamic || any || op.norm.own ? How::kKernel : How::kStatic;
      if (how == How::kKernel && op.kind == OpKind::kLinear && !on_dynamic && moves_ &&
          1 + static_cast<int64_t>((*moves_)[op.weight].size()) < op.k)
        how = How::kCombine;
      dynamic_[op.output] = how != How::kStatic;
      if (how == How::kKernel)
        for (const int x : op.inputs) needed_[x] = needed_[x] || !dynamic_[x];
      how_.push_back(how);
      found_.fixed.push_back(how == How::kStatic);
    }
    needed_[p_.output_] = needed_[p_.output_] || !dynamic_[p_.output_];
  }

  // Rows of the external matrix, and of the arena by first fit over what is alive together.
  void place_rows() {
    int64_t external = 0;
    external_.assign(p_.slots_.size(), -1);
    terms_.assign(p_.fused_.size(), -1);
    for (size_t s = 0; s < p_.slots_.size(); ++s) {
      if (!needed_[s]) continue;
      external_[s] = external, external += p_.slots_[s];
      found_.external.push_back({static_cast<int>(s), -1, false, {}});
    }
    for (size_t i = 0; i < p_.fused_.size(); ++i) {
      if (how_[i] != How::kCombine) continue;
      const Op& op = p_.fused_[i];
      const std::vector<int>& moves = (*moves_)[op.weight];
      terms_[i] = external;
      external += (1 + static_cast<int64_t>(moves.size())) * op.outer * op.m;
      found_.external.push_back({op.inputs[0], static_cast<int>(i),
                                 op.bias >= 0 && !moved(op.bias), moves});
    }
    found_.program.external_rows = narrow(external);

    const int steps = static_cast<int>(p_.fused_.size());
    std::vector<int> last(p_.slots_.size(), -1);
    for (int i = 0; i < steps; ++i)
      if (how_[i] == How::kKernel)
        for (const int x : p_.fused_[i].inputs) last[x] = i;
    last[p_.output_] = steps;
    arena_.assign(p_.slots_.size(), -1);
    std::vector<int> alive;
    int64_t rows = 0;
    for (int i = 0; i < steps; ++i) {
      if (how_[i] == How::kStatic) continue;
      const Op& op = p_.fused_[i];
      const bool over = in_place(op.kind);
      alive.erase(std::remove_if(alive.begin(), alive.end(),
                                 [&](int s) { return over ? last[s] <= i : last[s] < i; }),
                  alive.end());
      const auto dying = std::find_if(op.inputs.begin(), op.inputs.end(), [&](int s) {
        return over && last[s] == i && arena_[s] >= 0;
      });
      int64_t at = 0;
      if (dying != op.inputs.end()) {
        at = arena_[*dying];
      } else {
        // Under a thread's writes, no input may lie that another thread still reads.
        std::vector<int> taken = alive;
        for (const int x : op.inputs)
          if (how_[i] == How::kKernel && arena_[x] >= 0 &&
              std::find(taken.begin(), taken.end(), x) == taken.end())
            taken.push_back(x);
        std::sort(taken.begin(), taken.end(), [&](int a, int b) { return arena_[a] < arena_[b]; });
        for (const int s : taken) {
          if (at + p_.slots_[op.output] <= arena_[s]) break;
          at = std::max(at, arena_[s] + p_.slots_[s]);
        }
      }
      arena_[op.output] = at;
      rows = std::max(rows, at + p_.slots_[op.output]);
      alive.push_back(op.output);
    }
    found_.program.arena_rows = narrow(rows);
  }

  // The weights that steps read, one use after the other.
  void pack(int64_t shared_limit) {
    std::vector<int> read;
    for (size_t i = 0; i < p_.fused_.size(); ++i) {
      const Op& op = p_.fused_[i];
      if (how_[i] == How::kKernel) op.each_use([&](int use) { read.push_back(use); });
      if (how_[i] == How::kCombine && op.bias >= 0 && moved(op.bias)) read.push_back(op.bias);
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
  int32_t row(int slot, int64_t i = 0) const {
    return dynamic_[slot] ? narrow(arena_[slot] + i) : -1 - narrow(external_[slot] + i);
  }
  int32_t weight(int use) const { return use < 0 ? -1 : packed_[use]; }

  void add_step(const Op& op, size_t i) {
    Step s{};
    s.out = row(op.output), s.weight = -1, s.bias = -1;
    s.outer = narrow(op.outer), s.k = narrow(op.k), s.inner = narrow(op.inner);
    s.m = narrow(p_.slots_[op.output]);
    s.relu = op.relu, s.log = op.log, s.a = op.a, s.b = op.b;
    if (how_[i] != How::kCombine && !op.inputs.empty()) s.x = row(op.inputs[0]);
    switch (op.kind) {
      case OpKind::kLinear:
        if (how_[i] == How::kCombine) return combine(op, i, s);
        s.kind = Kind::kLinear, s.m = narrow(op.m);
        s.x = row(op.inputs[0], op.first(0));
        s.weight = weight(op.weight), s.bias = weight(op.bias);
        break;
      case OpKind::kUnary:
        s.kind = Kind::kUnary, s.function = static_cast<int32_t>(op.unary);
        break;
      case OpKind::kBinary:
        s.kind = Kind::kBinary, s.function = static_cast<int32_t>(op.binary);
        s.y = row(op.inputs[1]);
        break;
      case OpKind::kLayerNorm:
        s.kind = Kind::kLayerNorm, s.weight = weight(op.weight), s.bias = weight(op.bias);
        break;
      case OpKind::kSoftmax: s.kind = Kind::kSoftmax; break;
      case OpKind::kConcat:
        gather(s, [&](auto add) { each_concat_row(op, add); });
        break;
      case OpKind::kGather:
        gather(s, [&](auto add) {
          for (const int64_t from : op.index)
            add(from < 0 ? resident::kFill : row(op.inputs[0], from));
        });
        break;
      case OpKind::kExpand:
        gather(s, [&](auto add) {
          for (const int64_t from : op.index) add(narrow(from));
        });
        s.kind = Kind::kExpand, s.weight = weight(op.weight);
        break;
      default: throw std::invalid_argument("Program: an op without a resident kernel");
    }
    add(s);
  }

  void combine(const Op& op, size_t i, Step s) {
    const std::vector<int>& moves = (*moves_)[op.weight];
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

  template <typename F>
  void gather(Step& s, F each) {
    s.kind = Kind::kGather;
    s.index = narrow(static_cast<int64_t>(found_.list.size()));
    each([&](int32_t from) { found_.list.push_back(from); });
  }

  template <typename F>
  void each_concat_row(const Op& op, F add) const {
    for (size_t i = 0; i < op.rows.size(); ++i)
      for (int64_t r = 0; r < op.rows[i].count; ++r) add(row(op.inputs[i], op.rows[i].first + r));
    if (!op.rows.empty()) return;
    for (int64_t o = 0; o < op.outer; ++o)
      for (const int x : op.inputs) {
        const int64_t part = p_.slots_[x] / op.outer;
        for (int64_t r = 0; r < part; ++r) add(row(x, o * part + r));
      }
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
    to.output = row(p_.output_), to.features = narrow(p_.slots_[p_.output_]);
    to.index_size = narrow(static_cast<int64_t>(found_.list.size()));
    to.free_points = !moves_;
    to.directions = narrow(moves_ ? directions_ : p_.n_);
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
  const Moves& moves_;
  int64_t directions_;
  ResidentPlan found_;
  std::vector<How> how_;
  std::vector<bool> dynamic_, needed_;         // by slot
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
