"""Data sets: readers of studies, shards of samples, and the stream of batches."""
