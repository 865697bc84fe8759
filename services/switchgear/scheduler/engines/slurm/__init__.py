"""The engine of an installation whose nodes are Slurm's: one Slurm job for each launcher (docs/adr/0015)."""
