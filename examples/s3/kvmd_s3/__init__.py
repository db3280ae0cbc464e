"""``s3://bucket/key``: objects of S3-compatible stores, as a protocol plug-in of kvmd."""
