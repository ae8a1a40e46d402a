"""The same steps on many machines with Ray: readers, workers, and what happens when one of them is lost."""
