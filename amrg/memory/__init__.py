"""Memory banks: storage, and how the visual and the report bank are built."""
