"""How many replicas an inference service has: demand, policy, and the replicas that follow."""
