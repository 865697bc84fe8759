"""What an autoscaling policy would have done on recorded requests: a simulated service in virtual time."""
