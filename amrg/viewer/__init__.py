"""What a person looks at: overlays, plots and the self-contained HTML page."""
