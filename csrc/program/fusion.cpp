// What follows an op becomes its end, where nothing else reads what is between. Which ops can end
// with what, the table of ops says (program/ops/entry.h).
#include <algorithm>
#include <iterator>

#include "program/op_list.h"
#include "program/ops/entry.h"

namespace pylandscape {

// Removes the ops whose result reaches no output.
void OpList::drop_unread(std::vector<Op>& ops) const {
  std::vector<bool> read(slots_.size(), false);
  read[output_] = true;
  std::vector<Op> kept;
  for (auto op = ops.rbegin(); op != ops.rend(); ++op) {
    if (!read[op->output]) continue;
    for (const int x : op->inputs) read[x] = true;
    kept.push_back(std::move(*op));
  }
  ops.assign(std::make_move_iterator(kept.rbegin()), std::make_move_iterator(kept.rend()));
}

std::vector<int> OpList::readers() const {
  std::vector<int> count(slots_.size(), 0);
  for (const Op& op : ops_)
    for (const int x : op.inputs) ++count[x];
  ++count[output_];
  return count;
}

// An op followed by relu, where nothing else reads its output, becomes one.
void OpList::fuse_relu() {
  const std::vector<int> read = readers();
  std::vector<Op> kept;
  for (Op& op : ops_) {
    const bool relu = op.kind == OpKind::kUnary && op.unary == cpu::Unary::kRelu;
    const auto maker = std::find_if(kept.begin(), kept.end(), [&](const Op& before) {
      return relu && entry(before.kind).takes_relu(before) && !before.relu &&
             before.output == op.inputs[0];
    });
    if (maker != kept.end() && read[op.inputs[0]] == 1) {
      maker->relu = true;
      maker->output = op.output;
    } else {
      kept.push_back(std::move(op));
    }
  }
  ops_ = std::move(kept);
}

// A convolution takes in the batch norm and the sum that alone read its output.
void OpList::fuse_epilogues() {
  const std::vector<int> read = readers();
  std::vector<int> maker(slots_.size(), -1);  // position in fused_
  fused_.clear();
  const auto open = [&](int slot) {  // the op that can still take something in, or null
    const int at = maker[slot];
    if (at < 0 || read[slot] != 1) return static_cast<Op*>(nullptr);
    Op& op = fused_[at];
    const bool able = entry(op.kind).takes_epilogue && !op.relu && op.inputs.size() == 1;
    return able ? &op : nullptr;
  };
  for (const Op& op : ops_) {
    Op* into = nullptr;
    const Epilogue epilogue = entry(op.kind).epilogue(op);
    if (epilogue == Epilogue::kNorm) {
      into = open(op.inputs[0]);
      if (into != nullptr && into->norm.on()) into = nullptr;
      if (into != nullptr) into->norm = op.norm;
    } else if (epilogue == Epilogue::kSum) {
      const int later = maker[op.inputs[0]] > maker[op.inputs[1]] ? 0 : 1;
      into = open(op.inputs[later]);
      if (into != nullptr) into->inputs.push_back(op.inputs[1 - later]);
    }
    if (into != nullptr) {
      into->relu = op.relu, into->output = op.output;
      maker[op.output] = static_cast<int>(into - fused_.data());
    } else {
      maker[op.output] = static_cast<int>(fused_.size());
      fused_.push_back(op);
    }
  }
}

}  // namespace pylandscape
