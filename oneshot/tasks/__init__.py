"""What is asked and how it is judged: problems, suites, prompts, grading, rewards."""
