"""What a person writes: the settings of a trial, sweep files, clusters."""
