import os

# What our processes start becomes another program at once, so gRPC need not outlive a fork; it would write a line about each. It reads
# this when it is imported, and whoever imports it imports this package first.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
