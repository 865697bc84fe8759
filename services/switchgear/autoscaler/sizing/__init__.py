"""How many replicas keep the promise at the lowest cost: the autoscaling policy, pure."""
