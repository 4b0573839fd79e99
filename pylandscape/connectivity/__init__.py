"""Are two solutions one valley: barriers between models."""
