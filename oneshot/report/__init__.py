"""What finished trials say: intervals and pictures, read from the store."""
