"""Lines of a driver's log that whoever follows it from afar looks for."""

BEGIN = "--- oneshot ---"
"""Written before the driver begins: Ray writes lines of its own before."""
PASSED = "preflight: passed"
"""How the line begins that says that trials may begin."""
