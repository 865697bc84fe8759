"""Published autoscalers, each from its formulas, to be compared with on recorded requests."""
