"""HTTP interface of a run: `amrg serve`."""
