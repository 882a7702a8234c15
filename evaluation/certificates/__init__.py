"""What the noise of DP-SGD proves against every attacker, in labels read."""
