"""A sweep's summary -> one JSON message to a webhook."""

import json
import logging
import os
import urllib.request
from dataclasses import asdict

from oneshot.config.sweep import NotifyConfig
from oneshot.errors import UserError
from oneshot.sweep.run import Summary

TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)


def webhook_url(config: NotifyConfig) -> str:
    """Return the webhook's URL from the environment; checked before a sweep runs.

    Raises UserError: the variable is not set.
    """
    url = os.environ.get(config.webhook_env)
    if not url:
        raise UserError(
            f"notify.webhook_env: the environment variable {config.webhook_env} is not set; set it to a URL"
        )
    return url


def notify(url: str, *, sweep: str, summary: Summary) -> None:
    """Post `{sweep, finished, failed, missing, interrupted, ...}`; a failure is only a warning."""
    body = json.dumps({"sweep": sweep, **asdict(summary)}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        logger.warning("notify: cannot reach the webhook: %s", error)
