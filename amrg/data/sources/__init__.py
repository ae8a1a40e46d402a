"""Readers of data sets: each turns what a user has on disk into studies."""
