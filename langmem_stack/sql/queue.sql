-- The queue of background work: jobs of procrastinate, whose tables lie in this schema too.

-- queue_sessions --
-- Queues the forming of sessions that have something unformed: at once where there is enough of it, else
-- for when the session has been idle. A session whose job was queued already gets another one only where
-- that would come too late. What a worker takes up it marks as not queued; see session.queued.
WITH due AS (
    SELECT user_id, session_id,
           appended_at + make_interval(secs => %(idle)s::float8) AS idle_at,
           CASE WHEN %(now)s THEN 3
                WHEN last_position - formed >= %(messages)s OR unformed / 4 >= %(tokens)s THEN 2
                ELSE 1 END AS wanted
    FROM langmem_stack.session
    JOIN unnest(%(user_ids)s::text[], %(session_ids)s::text[]) AS named (user_id, session_id)
        USING (user_id, session_id)
    WHERE last_position > formed
      AND (appended_at = now() OR NOT %(appended)s)  -- the moment at which this transaction began
    ORDER BY user_id, session_id
    FOR NO KEY UPDATE OF session
), queued AS (
    UPDATE langmem_stack.session
    SET queued = due.wanted
    FROM due
    WHERE session.user_id = due.user_id AND session.session_id = due.session_id AND session.queued < due.wanted
    RETURNING due.*
)
SELECT langmem_stack.procrastinate_defer_jobs_v1(array_agg(ROW(
    %(queue)s,
    %(task)s,
    wanted - 1,  -- the priority: of the jobs with one lock only the first by priority and number may run
    encode(sha256(convert_to(jsonb_build_array(user_id, session_id)::text, 'UTF8')), 'hex'),
    NULL,
    jsonb_build_object('user_id', user_id, 'session_id', session_id, 'due', wanted = 3),
    CASE WHEN wanted = 1 THEN idle_at END
)::langmem_stack.procrastinate_job_to_defer_v1)) AS jobs
FROM queued
HAVING count(*) > 0;

-- list_jobs --
-- All of one user, or of all when the user is null.
SELECT job.id, args ->> 'user_id' AS user_id, args ->> 'session_id' AS session_id,
       CASE status WHEN 'todo' THEN 'waiting' WHEN 'doing' THEN 'running' ELSE 'failed' END AS state,
       attempts, coalesce(scheduled_at, queued.at) AS due_at, coalesce(error, '') AS error, queued.at AS queued_at
FROM langmem_stack.procrastinate_jobs AS job
LEFT JOIN langmem_stack.job_failure ON job_id = job.id,
LATERAL (
    SELECT min(at) AS at FROM langmem_stack.procrastinate_events AS event
    WHERE event.job_id = job.id AND type = 'deferred'
) AS queued
WHERE queue_name = %(queue)s AND status IN ('todo', 'doing', 'failed')
  AND (%(user_id)s::text IS NULL OR args ->> 'user_id' = %(user_id)s)
ORDER BY job.id;

-- count_jobs --
SELECT count(*) FILTER (WHERE status = 'todo') AS waiting,
       count(*) FILTER (WHERE status = 'doing') AS running,
       count(*) FILTER (WHERE status = 'failed') AS failed,
       coalesce(max(extract(epoch FROM now() - due_at)) FILTER (WHERE status = 'todo' AND due_at <= now()), 0)::float8
           AS overdue
FROM langmem_stack.procrastinate_jobs AS job, LATERAL (
    SELECT coalesce(scheduled_at, (
        SELECT min(at) FROM langmem_stack.procrastinate_events AS event
        WHERE event.job_id = job.id AND type = 'deferred'
    )) AS due_at
) AS due
WHERE queue_name = %(queue)s;

-- retry_jobs --
-- Makes one failed job wait again, or all when the id is null. Workers listen to this channel.
WITH failed AS (
    SELECT id FROM langmem_stack.procrastinate_jobs
    WHERE queue_name = %(queue)s AND status = 'failed' AND (%(job_id)s::bigint IS NULL OR id = %(job_id)s)
    ORDER BY id
    FOR UPDATE
), counted AS (
    UPDATE langmem_stack.job_failure SET failures = 0 FROM failed WHERE job_id = failed.id
)
SELECT id, langmem_stack.procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL)::text,
       pg_notify('procrastinate_queue_v1#' || %(queue)s, json_build_object('type', 'job_inserted', 'job_id', id)::text)
FROM failed;

-- requeue_jobs --
-- Makes the jobs wait again whose workers have given no sign of life for so many seconds.
SELECT id, langmem_stack.procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL)::text,
       pg_notify('procrastinate_queue_v1#' || %(queue)s, json_build_object('type', 'job_inserted', 'job_id', id)::text)
FROM (
    SELECT id FROM langmem_stack.procrastinate_jobs AS job
    WHERE queue_name = %(queue)s AND status = 'doing' AND NOT EXISTS (
        SELECT FROM langmem_stack.procrastinate_workers AS worker
        WHERE worker.id = job.worker_id AND last_heartbeat > now() - make_interval(secs => %(seconds)s::float8)
    )
    ORDER BY id
    FOR UPDATE SKIP LOCKED
) AS stalled;

-- keep_failure --
INSERT INTO langmem_stack.job_failure (job_id, failures, error)
SELECT id, %(failures)s::integer, %(error)s FROM langmem_stack.procrastinate_jobs WHERE id = %(job_id)s
ON CONFLICT (job_id) DO UPDATE
SET failures = job_failure.failures + excluded.failures, at = now(), error = excluded.error
RETURNING failures;

-- busy_sessions --
SELECT DISTINCT args ->> 'session_id' AS session_id
FROM langmem_stack.procrastinate_jobs AS job
JOIN langmem_stack.procrastinate_workers AS worker ON worker.id = worker_id
WHERE queue_name = %(queue)s AND status = 'doing' AND args ->> 'user_id' = %(user_id)s
  AND last_heartbeat > now() - make_interval(secs => %(seconds)s::float8)
ORDER BY session_id;

-- forget_jobs --
-- All of a user's when the session is null.
DELETE FROM langmem_stack.procrastinate_jobs
WHERE args ->> 'user_id' = %(user_id)s AND (%(session_id)s::text IS NULL OR args ->> 'session_id' = %(session_id)s)
RETURNING id;

-- settle_jobs --
-- Of a session that has nothing unformed the jobs that wait or failed: nothing is left for them. Of one that
-- its job has taken up the others that wait: they would do the same, and again what fails.
DELETE FROM langmem_stack.procrastinate_jobs
USING langmem_stack.session
WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND queue_name = %(queue)s
  AND args ->> 'user_id' = %(user_id)s AND args ->> 'session_id' = %(session_id)s  -- as `job_user` has them
  AND (status = 'todo' AND %(taken)s OR status IN ('todo', 'failed') AND formed = last_position);

-- begin_round --
-- A row for the one worker that is to do now what was not begun for so many seconds.
INSERT INTO langmem_stack.round AS last (name, begun_at) VALUES (%(name)s, now())
ON CONFLICT (name) DO UPDATE SET begun_at = now()
WHERE last.begun_at <= now() - make_interval(secs => %(seconds)s::float8)
RETURNING name;
