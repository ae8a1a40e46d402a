"""What fills the banks: class activation maps, the regions they show, and the step that builds both banks."""
