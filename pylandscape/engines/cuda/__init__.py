"""The engine of one GPU: programs, derivatives and their recorded graphs."""
