"""What `arq worker_settings.WorkerSettings` reads: the one module whose import does something."""

from arq.worker import func

from service import queue, signals, worker

settings = worker.prepared()


class WorkerSettings:
    """arq looks into this class's own `__dict__`: nothing may be inherited."""

    functions = [func(job, timeout=8 * 86_400, max_tries=1) for job in worker.JOBS]
    queue_name = signals.QUEUE_NAME
    redis_pool = queue.connect(settings.redis_url or "", max_connections=50)
    job_serializer = queue.serialize
    job_deserializer = queue.deserialize
    on_startup = worker.on_startup
    on_shutdown = worker.on_shutdown
    max_jobs = settings.hitl_max_jobs
    poll_delay = settings.hitl_poll_delay
    job_completion_wait = settings.hitl_drain_seconds
    expires_extra_ms = queue.EXPIRES_EXTRA_MS
    keep_result, max_tries, queue_read_limit = 0, 1, 5000
    health_check_interval, allow_abort_jobs, log_results = 10, False, False
