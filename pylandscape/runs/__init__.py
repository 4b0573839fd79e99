"""Long work that resumes: requests, journals, checkpoints, chunks."""
