"""Controls on the attackers themselves: what they must find, and what they must not."""
