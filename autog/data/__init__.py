"""From sources to batches: read, split, tokenise, store once; then map rows by number."""
