"""Python run under one instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CAPABILITIES = ("default", "avx2", "avx512")


def run_python(program: str, capability: str, **env: str) -> str:
    """What `program` prints in a fresh interpreter held to an instruction set; skips without it."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYLANDSCAPE_CPU_CAPABILITY": capability,
        **env,
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=False
    )
    if "this CPU supports at most" in done.stderr:
        pytest.skip(f"this CPU lacks {capability}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
