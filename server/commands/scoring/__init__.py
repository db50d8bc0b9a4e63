"""What `graft eval` does with answers: who computes them, here or on a cluster, and what is recorded."""
