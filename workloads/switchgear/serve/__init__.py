"""An inference server with dynamic batching, and the router in front of its replicas."""
