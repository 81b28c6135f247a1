"""Lines of a driver's log that whoever follows it from afar looks for."""

BEGIN = "--- oneshot ---"
"""Written before the driver begins: Ray writes lines of its own before."""
ANSWER_S = 180.0
"""A node has so long to start a worker, fetch the package, and read the data."""
PASSED = "preflight: passed"
"""How the line begins that says that trials may begin."""
