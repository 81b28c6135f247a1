"""What every verdict rests on: the level of its tests, and the fewest replicates."""

LEVEL = 0.05  # of every interval and test
MIN_SEEDS = 3  # with two seeds the t interval is 12.7 errors to each side, too wide to show anything
