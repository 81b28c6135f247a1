"""Models as files and sizes: where one is, how large it is, how much memory it needs."""
