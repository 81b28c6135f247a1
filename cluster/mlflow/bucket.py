"""The environment's S3 endpoint and keys -> a bucket for MLflow's artifacts, created if there is none."""

import os
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

PATIENCE = Config(retries={"mode": "standard", "max_attempts": 10})
"""A minute or two: the store may still be starting."""


def make_bucket(name: str) -> None:
    """Create the bucket, unless it exists."""
    s3 = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"], config=PATIENCE)
    try:
        s3.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise


if __name__ == "__main__":
    make_bucket(sys.argv[1])
