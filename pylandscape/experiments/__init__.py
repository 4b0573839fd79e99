"""Published studies as short scripts on the public names."""
