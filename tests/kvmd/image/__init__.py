"""What the first bytes of images tell."""
