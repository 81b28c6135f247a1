"""The shipped model organisms, and the scripts that made them."""
