"""argv to Request, nothing else."""
