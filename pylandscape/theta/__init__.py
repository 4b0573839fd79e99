"""What L(theta) depends on: layout, data, losses, directions, running statistics."""
