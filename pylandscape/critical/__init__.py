"""Critical points: found, classified, and the symmetries that relate them."""
