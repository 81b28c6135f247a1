"""One training, run and recorded, inside Ray and outside."""
