"""Recipe and rows to checkpoints: the loop, its optimizer, its records."""
