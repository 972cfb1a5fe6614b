"""What runs the jobs of the queue: a worker for a process of its own, or in a thread of the application.

`failures` says what becomes of a job that failed, `worker` runs jobs, `thread` runs a worker.
"""

from langmem_stack.jobs.thread import WorkerThread
from langmem_stack.jobs.worker import Former, Pace, Worker

__all__ = ["Former", "Pace", "Worker", "WorkerThread"]
