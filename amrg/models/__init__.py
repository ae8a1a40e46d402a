"""The networks: vision encoder, Q-Former, classifier, Hopfield memory, decoder, report generator."""
