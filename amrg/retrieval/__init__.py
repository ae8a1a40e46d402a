"""Retrieval from a bank across ranks, or through an index."""
