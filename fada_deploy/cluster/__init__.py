"""Run tasks on the machines of a Ray cluster, and write files where all of them can read them."""
