"""Scores of generated reports: language metrics, clinical metrics, statistics."""
