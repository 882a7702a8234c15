"""Among hundreds of defences, those that nothing beats on every count."""
