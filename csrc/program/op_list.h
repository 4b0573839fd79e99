// The op list: a network as ops over slots, in the order in which they run, whatever the dtype.
//
// A call that adds an op is that op's contract; it lies in program/ops/<op>.cpp, checks its
// arguments (std::invalid_argument) and returns the output slot. Slot 0 is the input. Parameters
// are given by their source (Use) in theta or in the constants.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "program/op.h"

namespace pylandscape {

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

class OpList {
 public:
  // n: length of theta.
  OpList(int64_t n, int64_t constants);

  int input(int64_t features);
  // Weight (m, k), or (k, m) where transposed. Reads x, or outer * k rows of it from row `first` on.
  int linear(int x, int64_t outer, int64_t k, int64_t m, int64_t weight, const int64_t* bias,
             int64_t first = -1, bool transposed = false);
  int unary(int x, cpu::Unary f, double a, double b);
  int binary(cpu::Binary op, int x, int y);
  int layer_norm(int x, int64_t outer, int64_t size, double eps, const int64_t* gain,
                 const int64_t* shift);
  // Over rows (pixels, channels); gain and shift (channels,).
  int group_norm(int x, int64_t groups, int64_t pixels, int64_t channels, double eps,
                 const int64_t* gain, const int64_t* shift);
  // `first`: of each of `outer`, how many of its `size` rows take part, the others are 0; none: all.
  int softmax(int x, bool log, int64_t outer, int64_t size, int64_t inner,
              std::vector<int64_t> first = {});
  int concat(const std::vector<int>& inputs, int64_t outer);
  // Rows of slots, one after the other: a concat of parts.
  int join(const std::vector<int>& inputs, std::vector<Rows> rows);
  int expand(int64_t source, int64_t size, std::vector<int64_t> index);
  int gather(int x, std::vector<int64_t> index, double fill);
  // Over rows (in_h, in_w, groups * channels); out_h and out_w are found here.
  int conv(int x, cpu::ConvArgs args, int64_t weight, const int64_t* bias);
  // z (outer, m, n) = scale x y for the elements that `a` names; z has exactly these rows.
  int matmul(int x, int y, const cpu::MatmulArgs& a, double scale);
  // Over rows (outer, channels).
  int batch_norm(int x, int64_t outer, int64_t channels, double eps, int64_t mean, int64_t variance,
                 const int64_t* gain, const int64_t* shift);
  // The same with the statistics of the batch, kept where both sources are given.
  // momentum: of the kept ones in training, see Norm.
  int batch_norm_own(int x, int64_t outer, int64_t channels, double eps, const int64_t* gain,
                     const int64_t* shift, const int64_t* keep_mean, const int64_t* keep_variance,
                     double momentum);
  // Training alone drops: elsewhere this is the identity. Row f is dropped where number index[f] of
  // the `count` standard normal ones of its sample is less than `below`, which has probability
  // `rate`; the others are divided by 1 - rate. number: which of the network's dropouts this is.
  int dropout(int x, double rate, double below, int64_t number, int64_t count,
              std::vector<int64_t> index);
  // Over pixels of `channels` rows. bounds (outputs + 1,) into index; factor (outputs,), or one for
  // each element of index, or empty.
  int pool(int x, cpu::Pool mode, int64_t channels, std::vector<int64_t> bounds,
           std::vector<int64_t> index, std::vector<double> factor);
  // Of each of `rows` of the data, which hold ids below `count`, its row of the weight (count, size).
  // Row `padding` (-1: none) moves the loss but gets no derivative, as in torch.
  int embedding(std::vector<int64_t> rows, int64_t count, int64_t size, int64_t padding,
                int64_t weight);
  // One step of a recurrent cell (cpu/kernels.h) over `hidden` units. x and h: slots with the
  // products of its input and of its last hidden state; state: the slot with its last state, from
  // row `first` on.
  int cell(cpu::Cell kind, int64_t hidden, int x, int h, int state, int64_t first);

  // Ends the building: `output` is the network's result.
  void finish(int output);

  int64_t n() const { return n_; }
  int output() const { return output_; }
  int64_t features(int slot) const { return slots_[slot]; }
  const std::vector<int64_t>& slots() const { return slots_; }  // features of each
  const std::vector<Op>& ops() const { return ops_; }
  // As they run: with batch norm and sums moved into convolutions, attention as one op, and lookups
  // (after the data).
  const std::vector<Op>& fused() const { return fused_; }
  // The same for a GPU: attention as the ops that it is made of.
  std::vector<Op> device_ops() const;
  const std::vector<Use>& uses() const { return uses_; }
  bool in_theta(int use) const { return use >= 0 && uses_[use].source >= 0; }
  bool mixes() const;  // whether a sample's outputs depend on its batch
  // Whether threads can share the ops of a tile in derivatives (Pass::share): most products are dense
  // layers or attention.
  bool divisible() const;
  bool draws() const;  // whether it has dropouts

  // Throws std::invalid_argument("Program: " + message) where it is not ok.
  static void require(bool ok, const char* message);
  static void require(bool ok, const std::string& message) { require(ok, message.c_str()); }

 protected:
  int slot(int64_t features);
  int add(Op&& op, int64_t features);  // the output slot
  int use(int64_t source, int64_t rows, int64_t cols,
          Use::Packing packing = Use::Packing::kPlain, const cpu::ConvArgs& conv = {});
  int64_t in_features(int s) const;
  // What follows an op that can end with it becomes its end (fusion.cpp).
  void drop_unread(std::vector<Op>& ops) const;
  std::vector<int> readers() const;  // by slot
  void fuse_relu();
  void fuse_epilogues();
  void fuse_attention();                                       // ops/attention.cpp
  void fuse_lookups(int64_t samples, int64_t vector_length);  // ops/lookup.cpp
  void place_slots();

  int64_t n_, constant_count_, packed_size_ = 0, arena_rows_ = 0;
  int64_t live_rows_ = 0;  // of the arena if every op ran by itself, as derivatives have it
  int64_t room_ = 0;       // vectors that an op of a question wants for itself at most
  std::vector<int64_t> slots_;
  std::vector<int64_t> place_;  // arena row of each slot, -1 for the input
  std::vector<Op> ops_;
  std::vector<Op> fused_;
  std::vector<Op> tables_;  // one of the lookups of each table (m columns for each of `outer` ids)
  std::vector<Use> uses_;
  int output_ = -1;
};

}  // namespace pylandscape
