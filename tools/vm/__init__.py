"""Real Debian guests under QEMU as forks: for the demo and for the tests. Standard library only."""
