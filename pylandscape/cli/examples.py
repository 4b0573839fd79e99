"""What help shows below the options: an example of each command, exit codes."""

from __future__ import annotations

import argparse

MODEL = "--model mine:net --data mine:data"

TOP = f"""\
A model and its data are functions of a file of yours, mine.py in this folder: net() returns the
module, data() returns (x, y), a DataLoader or batches.

examples:
  pylandscape demo
  pylandscape info {MODEL} --checkpoint best.pt
  pylandscape plane {MODEL} --checkpoint best.pt --out s.h5 --plot s.png
  pylandscape spectrum {MODEL} --checkpoint best.pt --out spectrum.h5
  pylandscape plot s.h5 --kind surface --log --out s.pdf

`pylandscape COMMAND --help` has the options of a command, and an example.

exit codes:
  0    done
  1    a check failed: a picture that does not show what it claims to (its files are written),
       a theorem (theory), or a run that diverged (train)
  2    bad usage or input, with one line on stderr; --debug shows where
  130  interrupted, with how to go on
"""

EXAMPLES = {
    "demo": "pylandscape demo --out demo",
    "line": f"pylandscape line {MODEL} --checkpoint best.pt --x=-1:1:101 --out line.h5",
    "plane": (
        f"pylandscape plane {MODEL} --checkpoint best.pt --out s.h5 --plot s.png\n"
        f"several, on one scale: pylandscape plane {MODEL} --checkpoint a.pt --checkpoint b.pt "
        "--out s.h5 --plot both.png"
    ),
    "interpolate": (
        f"pylandscape interpolate {MODEL} --checkpoint a.pt --to b.pt --bn recompute "
        "--out ab.h5 --plot ab.png"
    ),
    "spectrum": f"pylandscape spectrum {MODEL} --checkpoint best.pt --out sp.h5 --plot sp.png",
    "eigen": f"pylandscape eigen {MODEL} --checkpoint best.pt -k 5 --out top.h5",
    "convexity": f"pylandscape convexity {MODEL} --checkpoint best.pt --out c.h5 --plot c.png",
    "classify": f"pylandscape classify {MODEL} --walks 100 --out classes.h5",
    "reproduce": "pylandscape reproduce table1",
    "cloud": f"pylandscape cloud {MODEL} --walks 100 --out cloud.h5 --plot cloud.png",
    "theory": "pylandscape theory xor",
    "train": f"pylandscape train {MODEL} --lr 0.1 --epochs 20 --batch-size 64 --out runs.h5",
    "trajectory": (
        "pylandscape trajectory 'runs/*.pt' --pca --plot path.png\n"
        "a run of train: pylandscape trajectory runs.h5 --run 0 --pca --plot path.png"
    ),
    "track": f"pylandscape track {MODEL} --trajectory 'runs/*.pt' --lr 0.1 --plot track.png",
    "topology": "pylandscape topology s.h5 --plot tree.png",
    "plot": "pylandscape plot s.h5 --kind filled --log --levels 12 --out s.pdf",
    "report": "pylandscape report s.h5 spectrum.h5 --out report.html",
    "compare": "pylandscape compare a.h5 b.h5 --labels 'with skips,without' --out both.png",
    "info": f"pylandscape info s.h5\nof a model: pylandscape info {MODEL}",
}


def complete(sub: argparse.ArgumentParser, name: str) -> None:
    """Give a command its example, where it has none."""
    if sub.epilog is None and name in EXAMPLES:
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        sub.epilog = f"example: {EXAMPLES[name]}"
