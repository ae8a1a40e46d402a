"""Predictions of memory, communication and time, made before a run is started."""
