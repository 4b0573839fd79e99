"""Child processes import the installed package, not the checkout's folder of the same name."""

import os

os.environ["PYTHONSAFEPATH"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")
