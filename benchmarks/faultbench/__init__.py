"""Parts of the recovery benchmark: who is compared, how a run is started and read, which faults are made."""
