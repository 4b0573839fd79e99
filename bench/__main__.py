"""``python -m bench [--only W1,W2] [--quick] [--json FILE] [--threads N] [--repetitions R]``.

Prints one table per workload (medians over interleaved repetitions) and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from . import kernels, memory, surfaces, timing, vectors

_TIMED = {
    "W1": surfaces.w1,
    "W2": surfaces.w2,
    "W3": surfaces.w3,
    "W5": vectors.w5_w6,
    "draw": vectors.gaussian_rate,
}


def main(arguments: list[str] | None = None) -> int:
    known = [*_TIMED, "memory", "kernels"]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default=",".join(known), help="comma-separated, of: %(default)s")
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run?")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    for name in chosen:
        if name not in known:
            parser.error(f"--only: expected some of {', '.join(known)}, got {name!r}")
    if options.threads:
        torch.set_num_threads(options.threads)
    repetitions = 2 if options.quick else options.repetitions
    report: dict[str, object] = {"environment": timing.environment(), "quick": options.quick}
    print(", ".join(f"{k} {v}" for k, v in timing.environment().items()))
    for name in chosen:
        if name in _TIMED:
            table = _TIMED[name](options.quick, repetitions)
            print(f"\n{timing.as_markdown(table)}", flush=True)
        elif name == "memory":
            table = memory.memory(options.quick)
            row = table[0]
            print(
                f"\nmemory: {row['small']}, {row['large']}: {row['growth']:+.1%} "
                f"(target within 5 %: {'met' if row['met'] else 'missed'})",
                flush=True,
            )
        else:
            table = kernels.microbenchmarks(options.quick, repetitions)
            print(f"\n{kernels.as_markdown(table)}", flush=True)
        report[name] = table
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
