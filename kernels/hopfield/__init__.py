"""Associative retrieval over a shared frozen memory."""
