"""What the commands of ``gradguard`` do, one module each."""
