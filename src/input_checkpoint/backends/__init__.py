"""Storage backends: the contract, the built-in backends, and support for plugins."""
