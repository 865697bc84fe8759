"""What the agent can and cannot see on this node, and what helps: for the first person who runs it on real hardware."""
