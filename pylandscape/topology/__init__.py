"""The shape of a grid's values: merge trees, persistence pairs, and distances between them."""
