"""The analyses that the papers are known for: scores and the network hierarchy."""
