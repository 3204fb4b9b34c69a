"""What a person runs: one module a job, the stage runner and the command line."""

import os

# What Ray prints about itself, and no user can act on, would hide what they can act on. Both are
# read when Ray is imported, so they are set before any job imports it.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
