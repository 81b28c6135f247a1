"""The shipped model organisms, and the script that trained them."""
