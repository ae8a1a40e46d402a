"""Runs that are loaded, and the reports that they write."""
