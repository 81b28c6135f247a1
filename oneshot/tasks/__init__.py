"""Problems, evaluation suites, prompts, grading and rewards."""
