"""One training, run and recorded, with or without Ray."""
