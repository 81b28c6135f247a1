"""Many trials: the driver of a sweep, its search, Ray and MLflow.

Ray and Tune read some settings when they are imported, so their defaults are set here, before any module of this
package is.
"""

import os

for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",  # do not send usage statistics
    "RAY_AIR_NEW_OUTPUT": "0",  # oneshot shows progress itself
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store records trials
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default, without its warning
}.items():
    os.environ.setdefault(_name, _value)
