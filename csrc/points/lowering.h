// What an op sees of Points when it is taken apart into steps (`lower` in program/ops/).
#pragma once
#include <vector>

#include "points/step.h"
#include "program/op_list.h"

namespace pylandscape {

class PointLowering {
 public:
  // constants: values that no point moves. Steps and slots are added to.
  PointLowering(const OpList& program, const std::vector<double>& constants,
                std::vector<PointStep>& steps, std::vector<int64_t>& features)
      : program_(program), constants_(constants), steps_(steps), features_(features) {}

  // std::invalid_argument with the reason why the network does not run as lanes of points.
  static void require(bool ok, const char* reason);

  const Use& use(int number) const { return program_.uses()[number]; }
  bool moves(int use) const { return program_.in_theta(use); }
  int64_t place(int use) const;               // in PointWorker::source, or -1
  const double* constant(int use) const;      // its values; null where theta holds them

  void add(PointStep step) { steps_.push_back(std::move(step)); }
  // The step, then a gain and a shift (uses, or -1) as rows that multiply and add, of which row f
  // reads element f % size; a relu of the op comes last.
  void add_with_gain(PointStep step, int gain, int shift, int64_t size);
  // The value of a parameter in every sample, row f its element index[f].
  void add_parameter(int use, Op expand);

 private:
  int add_slot(int64_t features);

  const OpList& program_;
  const std::vector<double>& constants_;
  std::vector<PointStep>& steps_;
  std::vector<int64_t>& features_;
};

}  // namespace pylandscape
