"""Are two solutions one valley, and how flat is it: barriers, flatness measures."""
