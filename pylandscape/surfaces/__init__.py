"""L along lines, over planes and between models, and what is measured there."""
