"""Knowledge graph of findings, sites, devices and qualifiers, counted in the train reports."""
