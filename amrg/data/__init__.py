"""Studies on disk to shards, and shards to a stream of samples."""
