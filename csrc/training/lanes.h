// Runs of a small network in float64 as the lanes of a vector, through the passes of points/.
#pragma once
#include "points/points.h"
#include "training/training.h"

namespace pylandscape {

class LaneTraining {
 public:
  // Networks of at most so many parameters are trained this way, whatever the number of runs.
  static constexpr int64_t kMost = 512;

  // counts: see Batches. Throws std::invalid_argument, with the reason, as Points does.
  LaneTraining(const Program<double>& program, const Rule& rule, const double* counts);

  // See Training.
  int slots() const { return rule_.slots(); }
  bool advance(const Runs<double>& runs, const std::vector<Indices>& steps, const double* rates,
               double* losses, const Parallel& parallel, const ShouldStop& stop);

 private:
  struct Work {
    Points::Worker points;
    std::vector<Buffer<double>> slots;  // (n, lanes)
    Buffer<double> kept, stage;
    std::vector<double> denominators, scales;
    const int64_t* loaded = nullptr;  // samples that fill the only block
    int64_t loaded_size = 0;
  };

  void ready(Work& work) const;
  void load(const Indices& step, int64_t first_run, int64_t runs, int64_t first, int64_t samples,
            Work& work) const;
  void gradient(const Indices& step, int64_t first_run, int64_t runs, Work& work) const;
  void step(const Indices& step, int64_t first_run, int64_t runs, int64_t number, double rate,
            double* losses, int64_t stride, Work& work) const;

  Points points_;
  const Program<double>& program_;
  Rule rule_;
  Batches<double> batches_;
  int64_t lanes_, n_;
  std::mutex busy_;
  std::vector<std::unique_ptr<Work>> works_;
};

}  // namespace pylandscape
