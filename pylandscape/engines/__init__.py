"""Who answers: one contract (contract.py), then native, eager, CUDA and point engines."""
