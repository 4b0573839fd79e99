"""What comes out: plain data classes with axes, values and where they come from."""
