"""Where trials run: the only home of Ray."""
