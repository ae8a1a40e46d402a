"""``amrg experiment``: the chain again with one thing changed, over several seeds, and what came of it in words."""
