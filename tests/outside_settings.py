"""Settings in a file of their own, as the models of tests/test_outside.py read and change them."""

CALLS = 0
SEEN: list[int] = []
