"""Where bytes live: the contract, the built-in backends, and what plugins build on."""
