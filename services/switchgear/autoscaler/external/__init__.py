"""Services that somebody else runs: their replicas are found and scraped, and the desired number is published for an HPA or KEDA."""
