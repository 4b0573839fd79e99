// What an engine that is not C++ gets to see of a Program: its ops by name, and its resident plan.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "program/ops/entry.h"
#include "program/program.h"
#include "program/resident_plan.h"

namespace pylandscape {

namespace py = pybind11;

// (source, elements) of a use; None where there is none.
inline py::object source_of(const OpList& p, int use) {
  if (use < 0) return py::none();
  const Use& found = p.uses()[use];
  return py::make_tuple(found.source, found.size());
}

// None, or what batch norm (of a convolution's results, too) reads.
inline py::object norm_of(const OpList& p, const Norm& norm) {
  if (!norm.on() && !norm.own) return py::none();
  py::dict d;
  d["gain"] = source_of(p, norm.gain), d["shift"] = source_of(p, norm.shift);
  d["mean"] = source_of(p, norm.mean), d["variance"] = source_of(p, norm.variance);
  d["eps"] = norm.eps, d["own"] = norm.own;
  return d;
}

inline py::dict conv_of(const cpu::ConvArgs& a) {
  py::dict d;
  d["groups"] = a.groups, d["channels"] = a.channels, d["rows"] = a.rows;
  d["image"] = py::make_tuple(a.in_h, a.in_w), d["result"] = py::make_tuple(a.out_h, a.out_w);
  d["kernel"] = py::make_tuple(a.kernel_h, a.kernel_w);
  d["stride"] = py::make_tuple(a.stride_h, a.stride_w);
  d["pad"] = py::make_tuple(a.pad_h, a.pad_w);
  d["dilation"] = py::make_tuple(a.dilation_h, a.dilation_w);
  return d;
}

inline py::dict matmul_of(const Op& op) {
  const cpu::MatmulArgs& a = op.strides;
  py::dict d;
  d["sizes"] = py::make_tuple(a.m, a.n, a.k);
  d["strides"] = py::make_tuple(a.xi, a.xk, a.yk, a.yj, a.zi, a.zj);
  d["x_outer"] = op.x_outer, d["y_outer"] = op.y_outer, d["z_outer"] = op.z_outer;
  return d;
}

// The ops by name: as they run on a GPU (with epilogues and lookups fused), or as they were given.
inline py::list op_list(const OpList& p, bool fused) {
  py::list all;
  for (const Op& op : fused ? p.device_ops() : p.ops()) {
    py::dict d;
    d["kind"] = kOpNames[static_cast<int>(op.kind)];
    d["inputs"] = py::tuple(py::cast(op.inputs)), d["output"] = op.output;
    d["weight"] = source_of(p, op.weight), d["bias"] = source_of(p, op.bias);
    d["second"] = source_of(p, op.second), d["norm"] = norm_of(p, op.norm);
    d["transposed"] = op.weight >= 0 && p.uses()[op.weight].transposed();
    d["function"] = entry(op.kind).function(op);
    d["relu"] = op.relu, d["log"] = op.log, d["a"] = op.a, d["b"] = op.b;
    d["outer"] = op.outer, d["k"] = op.k, d["m"] = op.m, d["inner"] = op.inner;
    d["index"] = py::tuple(py::cast(op.index)), d["bounds"] = py::tuple(py::cast(op.bounds));
    d["factor"] = py::tuple(py::cast(op.factor));
    py::list rows;
    for (const Rows& r : op.rows) rows.append(py::make_tuple(r.first, r.count));
    d["rows"] = py::tuple(rows);
    d["conv"] = op.kind == OpKind::kConv ? py::object(conv_of(op.conv)) : py::none();
    d["matmul"] = op.kind == OpKind::kMatmul ? py::object(matmul_of(op)) : py::none();
    all.append(d);
  }
  return all;
}

// (reason or "", bytes of the plan, list, external rows as (slot, op, bias, moves), description).
template <typename T>
py::tuple resident_plan(const Program<T>& p, int64_t directions,
                        const std::optional<std::vector<std::vector<int>>>& moves,
                        int64_t shared_limit) {
  const ResidentPlan plan = plan_resident(p, directions, moves, shared_limit);
  const resident::Program& program = plan.program;
  py::list external;
  for (const ExternalRows& rows : plan.external)
    external.append(py::make_tuple(rows.slot, rows.op, rows.bias, rows.moves));
  py::dict about;
  about["columns"] = program.columns, about["groups"] = program.groups;
  about["points"] = program.points, about["weights"] = program.weights;
  about["arena_rows"] = program.arena_rows, about["external_rows"] = program.external_rows;
  about["steps"] = program.steps, about["fixed"] = plan.fixed;
  return py::make_tuple(plan.reason,
                        py::bytes(reinterpret_cast<const char*>(&program), sizeof(program)),
                        py::bytes(reinterpret_cast<const char*>(plan.list.data()),
                                  plan.list.size() * sizeof(int32_t)),
                        external, about);
}

}  // namespace pylandscape
