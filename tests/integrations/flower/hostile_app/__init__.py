"""A Flower app for the tests on Flower's own engines; some of its clients misbehave."""
