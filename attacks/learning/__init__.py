"""What the learned attacks are made of: readings of messages, a bank of regressions on them."""
