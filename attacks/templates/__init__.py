"""What template regression is made of: class gradients, a learned channel, a decoder."""
