"""Storage servers on loopback that the integration tests start, kill and stop."""
