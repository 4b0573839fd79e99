"""Benchmarks: ``python -m bench`` (see __main__.py)."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# `python -m` puts the checkout first on the path, where its source folder would hide the installed
# package; with an editable install or a core built in place there is nothing to hide.
_checkout = Path(__file__).resolve().parent.parent
if not list((_checkout / "pylandscape").glob("_C*")):
    sys.path = [p for p in sys.path if Path(p or ".").resolve() != _checkout]
if find_spec("pylandscape") is None:
    raise ImportError("bench: install pylandscape first (pip install .)")

# The sgemm peak is that of the best library at hand. OpenBLAS, NumPy's, takes AVX-512 kernels on
# every processor that has them when told so before it is loaded; no setting may hold it lower.
try:
    _flags = Path("/proc/cpuinfo").read_text()
except OSError:
    _flags = ""
if all(f"avx512{part}" in _flags for part in ("f", "bw", "dq", "vl")):
    os.environ["OPENBLAS_CORETYPE"] = "SKYLAKEX"
    os.environ.pop("OPENBLAS_L2_SIZE", None)
