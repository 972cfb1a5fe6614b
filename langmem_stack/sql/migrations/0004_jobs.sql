-- Why the last try of a job failed; procrastinate, whose tables are there by now, keeps no reasons.
CREATE TABLE langmem_stack.job_failure (
    job_id   bigint PRIMARY KEY REFERENCES langmem_stack.procrastinate_jobs ON DELETE CASCADE,
    failures integer NOT NULL,  -- tries that failed, without those that were put off
    at       timestamptz NOT NULL DEFAULT now(),
    error    text NOT NULL      -- never with what was said
);

CREATE INDEX job_user ON langmem_stack.procrastinate_jobs ((args ->> 'user_id'));
