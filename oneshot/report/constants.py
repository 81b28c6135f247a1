"""What all tests of a report share. No SciPy, which takes a quarter of a second to import, so that `plan` is quick."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LEVEL = 0.05  # of every interval and test
MIN_SEEDS = 3  # with two seeds the t interval is 12.7 errors to each side, too wide to show anything
