"""Models as files: where they lie, their shapes, and the memory and GPUs that they need."""
