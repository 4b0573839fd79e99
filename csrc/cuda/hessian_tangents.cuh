// Tangents of values and adjoints (hessian_passes.cuh) in one column, which is one direction of one
// sample at one point. A leading r: tangent.
#pragma once
#include "cuda/hessian_passes.cuh"

namespace pylandscape::cuda {

// Tangent of the output of s, some of whose inputs may have one.
__device__ inline void tangent_step(const Column& c, const Step& s) {
  const bool x = c.bends(s.x);
  switch (s.kind) {
    case Kind::kLinear:
      for (int32_t o = 0; x && o < s.outer; ++o)
        multiply<false>(s.m, s.k, c.base + s.weight, s.row, s.column, c.rv, s.x + o * s.k,
                        -1, c.rv, s.out + o * s.m);
      return;
    case Kind::kUnary:
      for (int32_t r = 0; x && r < s.m; ++r)
        c.rv(s.out + r) = c.slope(s.bent + r) * c.rv(s.x + r);
      return;
    case Kind::kBinary: {
      const auto function = static_cast<cpu::Binary>(s.function);
      const bool y = c.bends(s.y);
      if (!x && !y) return;
      for (int32_t r = 0; r < s.m; ++r) {
        const double rx = x ? c.rv(s.x + r) : 0.0, rz = y ? c.rv(s.y + r) : 0.0;
        double ry = rx + rz;
        if (function == cpu::Binary::kSub) ry = rx - rz;
        if (function == cpu::Binary::kMul) ry = rx * c.v(s.y + r) + rz * c.v(s.x + r);
        if (function == cpu::Binary::kDiv) ry = (rx - c.v(s.out + r) * rz) / c.v(s.y + r);
        c.rv(s.out + r) = ry;
      }
      return;
    }
    case Kind::kAffine:
      for (int32_t r = 0; x && r < s.m; ++r)
        c.rv(s.out + r) = c.source(s.weight + r % s.k) * c.rv(s.x + r);
      return;
    case Kind::kNorm:
      for (int32_t o = 0; x && o < s.outer; ++o) {
        const NormGroup g(s, c.v, o);
        double mean = 0, dot = 0;
        for (int32_t f = 0; f < s.k; ++f) {
          const double rx = c.rv(s.x + g.at(f));
          mean += rx, dot += rx * g.z(f);
        }
        mean /= double(s.k), dot /= double(s.k);
        for (int32_t f = 0; f < s.k; ++f)
          c.rv(s.out + g.at(f)) = g.scale * (c.rv(s.x + g.at(f)) - mean - g.z(f) * dot);
      }
      return;
    case Kind::kSoftmax:
      if (!x) return;
      each_softmax(s, [&](int32_t first) {
        double mean = 0;
        for (int32_t f = 0; f < s.k; ++f) {
          const int32_t r = first + f * s.inner;
          mean += probability(s, c.v(s.out + r)) * c.rv(s.x + r);
        }
        for (int32_t f = 0; f < s.k; ++f) {
          const int32_t r = first + f * s.inner;
          const double ry = c.rv(s.x + r) - mean;
          c.rv(s.out + r) = s.log != 0 ? ry : c.v(s.out + r) * ry;
        }
      });
      return;
    case Kind::kGather:
      for (int32_t r = 0; r < s.m; ++r) {
        const int32_t from = c.list[s.index + r];
        c.rv(s.out + r) = c.bends(from) ? c.rv(from) : 0.0;
      }
      return;
    case Kind::kSum:
      for (int32_t r = 0; x && r < s.m; ++r) {
        const int32_t o = r / s.k, *bounds = c.list + s.index, *rows = bounds + s.outer + 1;
        double sum = 0;
        for (int32_t i = bounds[o]; i < bounds[o + 1]; ++i) sum += c.rv(rows[i] + r % s.k);
        c.rv(s.out + r) = c.source(s.weight + o) * sum;
      }
      return;
    case Kind::kMatmul:
      each_product(c, s, [&](int32_t z, int32_t i, int32_t j) {
        if (x) c.rv(z) += s.a * c.rv(i) * c.v(j);
        if (c.bends(s.y)) c.rv(z) += s.a * c.v(i) * c.rv(j);
      });
      return;
  }
}

// What R of `pull` has besides `pull` of rdy: from the tangents of the values that it multiplies by.
__device__ inline void bend(const Column& c, const Step& s) {
  const bool x = c.bends(s.x);
  switch (s.kind) {
    case Kind::kUnary:
      for (int32_t r = 0; x && r < s.m; ++r)
        c.rd(s.x + r) += c.curve(s.bent + r) * c.rv(s.x + r);
      return;
    case Kind::kBinary: {
      const auto function = static_cast<cpu::Binary>(s.function);
      const bool y = c.bends(s.y);
      if (function == cpu::Binary::kMul && x && y)
        for (int32_t r = 0; r < s.m; ++r) {
          const double dy = c.d(s.out + r);
          // Both before either: x and y may be the same rows.
          const double rdx = dy * c.rv(s.y + r), rdz = dy * c.rv(s.x + r);
          c.rd(s.x + r) += rdx, c.rd(s.y + r) += rdz;
        }
      if (function == cpu::Binary::kDiv && (x || y))
        for (int32_t r = 0; r < s.m; ++r) {  // of d = dy / z: -d rz / z, and that of -d q
          const double z = c.v(s.y + r), d = c.d(s.out + r) / z;
          const double rest = y ? -d * c.rv(s.y + r) / z : 0.0;
          if (x) c.rd(s.x + r) += rest;
          if (y) c.rd(s.y + r) -= rest * c.v(s.out + r) + d * c.rv(s.out + r);
        }
      return;
    }
    case Kind::kNorm:
      for (int32_t o = 0; x && o < s.outer; ++o) {
        const NormGroup g(s, c.v, o);
        const double share = 1.0 / double(s.k);
        double rx_mean = 0, z_rx = 0, d_mean = 0, d_z = 0, cross = 0;
        for (int32_t f = 0; f < s.k; ++f) {
          const double rx = c.rv(s.x + g.at(f)), dy = c.d(s.out + g.at(f)), z = g.z(f);
          rx_mean += share * rx, z_rx += share * rx * z;
          d_mean += share * dy, d_z += share * dy * z;
        }
        const auto rz = [&](int32_t f) {
          return g.scale * (c.rv(s.x + g.at(f)) - rx_mean - g.z(f) * z_rx);
        };
        for (int32_t f = 0; f < s.k; ++f) cross += share * c.d(s.out + g.at(f)) * rz(f);
        const double rs = -g.scale * g.scale * z_rx;
        for (int32_t f = 0; f < s.k; ++f) {
          const double u = c.d(s.out + g.at(f)) - d_mean - g.z(f) * d_z;
          c.rd(s.x + g.at(f)) += rs * u - g.scale * (rz(f) * d_z + g.z(f) * cross);
        }
      }
      return;
    case Kind::kSoftmax:
      if (!x) return;
      each_softmax(s, [&](int32_t first) {
        double sum = 0, rsum = 0;  // <y dy> and what is left of its tangent; log: <1 dy>
        for (int32_t f = 0; f < s.k; ++f) {
          const int32_t r = s.out + first + f * s.inner;
          sum += s.log != 0 ? c.d(r) : c.d(r) * c.v(r);
          rsum += s.log != 0 ? 0.0 : c.d(r) * c.rv(r);
        }
        for (int32_t f = 0; f < s.k; ++f) {
          const int32_t own = first + f * s.inner, r = s.out + own;
          c.rd(s.x + own) += s.log != 0 ? -exp(c.v(r)) * c.rv(r) * sum
                                        : c.rv(r) * (c.d(r) - sum) - c.v(r) * rsum;
        }
      });
      return;
    case Kind::kMatmul:
      if (!x || !c.bends(s.y)) return;  // what has no tangent bends nothing
      each_product(c, s, [&](int32_t z, int32_t i, int32_t j) {
        const double dz = s.a * c.d(z);
        c.rd(i) += dz * c.rv(j);
        c.rd(j) += dz * c.rv(i);
      });
      return;
    default: return;
  }
}

// Tangents along row `row` of the output of step `from`, before its relu; `lowest`: the first step
// of the directions that run together.
__device__ inline void tangent_forward(const Column& c, int32_t lowest, int32_t from, int32_t row) {
  for (int32_t r = c.low; r < c.p.rows; ++r) c.rv(r) = 0;
  for (int32_t i = lowest; i < c.p.steps; ++i) {
    const Step& s = c.p.step[i];
    if (s.moves == 0) continue;
    if (i > lowest) tangent_step(c, s);
    if (i == from) c.rv(row) = 1;
    mask(c, s, c.rv);
  }
}

// Tangents of the adjoints back to the output of step `from`.
__device__ inline void tangent_reverse(const Column& c, int32_t from) {
  const Program& p = c.p;
  for (int32_t r = c.low; r < p.rows; ++r) c.rd(r) = 0;
  column_product(
      p.loss, [&](int64_t f) { return c.rv(p.output + static_cast<int32_t>(f)); },
      [&](int64_t i) { return c.kept(static_cast<int32_t>(i)); },
      [&](int64_t f, double v) { c.rd(p.output + static_cast<int32_t>(f)) = v; });
  for (int32_t i = p.steps - 1; i >= from; --i) {
    const Step& s = p.step[i];
    if (s.moves == 0) continue;
    mask(c, s, c.rd);
    if (i == from) break;
    pull(c, s, c.rd, c.low);
    bend(c, s);
  }
}

}  // namespace pylandscape::cuda
