"""gradguard: defend the gradients a client sends, and attack that very defence first."""
