"""``amrg view``: a local page on which a run can be looked at, film by film."""
