"""The Python API: sweeps, results, training and grading, without the command line. `import oneshot` shows its names."""
