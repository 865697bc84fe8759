"""What inference servers of others tell of themselves: names, types and units of their metrics, read into what a policy sees."""
