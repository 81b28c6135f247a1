"""A sweep file -> cells, trials with keys, trainings; what they cost and what changes them."""
