"""Many trials: the doors to Ray and MLflow.

Ray and Tune read some settings as they are imported, so their defaults are set here, before any module of this room.
"""

import os

for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",  # a lab's sweeps are its own business
    "RAY_AIR_NEW_OUTPUT": "0",  # ours is the only progress table
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store records trials, Tune need not
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default, taken now without its warning
}.items():
    os.environ.setdefault(_name, _value)
