-- Row-level security, where it is wanted: a transaction sees and writes the rows of one user, whatever SQL
-- runs in it. The owner of the tables is not subject to it. See `row_level_security.py`.

-- problems --
-- What would let the application's role go around the policies, or change what names mean.
WITH role AS (
    SELECT oid, rolname FROM pg_roles WHERE rolname = %(role)s
), owner AS (
    SELECT relowner AS oid FROM pg_class WHERE oid = to_regclass('langmem_stack.message')
), vector AS (
    SELECT pg_namespace.oid AS schema, nspname
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'
)
SELECT EXISTS (SELECT FROM role) AS role_exists,
       coalesce(pg_has_role((SELECT oid FROM owner), 'USAGE'), false) AS owned,
       ARRAY(
           SELECT powerful.rolname FROM role, pg_roles AS powerful
           WHERE pg_has_role(role.oid, powerful.oid, 'MEMBER')
             AND (powerful.rolsuper OR powerful.rolbypassrls OR powerful.rolcreaterole OR powerful.rolreplication
                  OR powerful.oid IN (SELECT oid FROM owner)
                  OR powerful.rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program'))
           ORDER BY 1
       ) AS powerful,
       ARRAY(
           SELECT nspname FROM role, pg_namespace
           WHERE (nspname = 'langmem_stack' OR pg_namespace.oid IN (SELECT schema FROM vector))
             AND has_schema_privilege(role.oid, pg_namespace.oid, 'CREATE')
           ORDER BY 1
       ) AS may_create_in,
       coalesce((SELECT nspname FROM vector), 'public') AS vector_schema;

-- installed --
-- A digest of all that the last installation did; null before the first.
SELECT obj_description(to_regprocedure('langmem_stack.bind(text)'), 'pg_proc') AS digest;

-- install --
-- Safe to repeat.
SELECT pg_advisory_xact_lock({lock});

-- The key as the two blocks that HMAC hashes with (RFC 2104). The application knows it, its role must not.
CREATE TABLE IF NOT EXISTS langmem_stack.binding_key (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    inner_block bytea NOT NULL,
    outer_block bytea NOT NULL
);
ALTER TABLE langmem_stack.binding_key ENABLE ROW LEVEL SECURITY;
INSERT INTO langmem_stack.binding_key (inner_block, outer_block) VALUES ({inner_block}, {outer_block})
ON CONFLICT (one) DO UPDATE SET inner_block = excluded.inner_block, outer_block = excluded.outer_block;

-- Whose transaction it is: the user that the setting names behind its digest; null where that is not right,
-- and so nobody's. The digests are compared by their own digests, so that the time tells nothing.
CREATE OR REPLACE FUNCTION langmem_stack.scope() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    token    text := current_setting('langmem_stack.scope', true);
    expected bytea;
BEGIN
    IF token IS NULL OR length(token) <= 64 THEN RETURN NULL; END IF;
    SELECT sha256(outer_block || sha256(inner_block || convert_to(substr(token, 65), 'UTF8'))) INTO expected
    FROM langmem_stack.binding_key;
    IF sha256(convert_to(encode(expected, 'hex'), 'UTF8')) = sha256(convert_to(left(token, 64), 'UTF8')) THEN
        RETURN substr(token, 65);
    END IF;
    RETURN NULL;
END $$;

-- Binds a transaction to a user, or with an empty token to nobody; the first statement of each request.
-- What an earlier one left behind in the session could run as this user, or show rows of that one: names
-- that mean something else, prepared statements under names that the driver uses, temporary objects, open
-- cursors. Names are set right; a session with the others is ended, and the driver takes another one.
CREATE OR REPLACE FUNCTION langmem_stack.bind(token text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.set_config('search_path', {search_path}, true),
            pg_catalog.set_config('row_security', 'on', true),
            pg_catalog.set_config('langmem_stack.scope', token, true);
    IF pg_my_temp_schema() <> 0 OR EXISTS (SELECT FROM pg_prepared_statements WHERE from_sql)
       OR EXISTS (SELECT FROM pg_cursors WHERE is_holdable) THEN
        PERFORM pg_terminate_backend(pg_backend_pid());
        RAISE EXCEPTION 'an earlier request left something behind in this session' USING ERRCODE = 'admin_shutdown';
    END IF;
    IF NOT row_security_active('langmem_stack.message') THEN
        RAISE EXCEPTION 'the role % is not subject to row-level security', current_user
            USING ERRCODE = 'invalid_authorization_specification';
    END IF;
    IF token <> '' AND langmem_stack.scope() IS NULL THEN
        RAISE EXCEPTION 'the key for row-level security is not that of this database'
            USING ERRCODE = 'invalid_authorization_specification';
    END IF;
END $$;

-- SHA-256 of the user's id, which is what erasures and the audit keep of users that were erased.
CREATE OR REPLACE FUNCTION langmem_stack.scope_digest() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN encode(sha256(convert_to(langmem_stack.scope(), 'UTF8')), 'hex');

-- The application's role: no more than it needs, and no partition by itself.
REVOKE ALL ON FUNCTION langmem_stack.scope(), langmem_stack.scope_digest(), langmem_stack.bind(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA langmem_stack TO {role};
GRANT EXECUTE ON FUNCTION langmem_stack.scope(), langmem_stack.scope_digest(), langmem_stack.bind(text) TO {role};
GRANT SELECT ON
    langmem_stack.migration, langmem_stack.queue_migration, langmem_stack.embedding_model,
    langmem_stack.procrastinate_workers TO {role};
GRANT SELECT, INSERT, UPDATE ON langmem_stack.model_usage TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON
    langmem_stack.namespace, langmem_stack.item, langmem_stack.item_text, langmem_stack.posting,
    langmem_stack.embedding, langmem_stack.session, langmem_stack.message, langmem_stack.formed,
    langmem_stack.audit, langmem_stack.erasure TO {role};
GRANT SELECT, DELETE, INSERT (queue_name, task_name, priority, lock, queueing_lock, args, scheduled_at)
    ON langmem_stack.procrastinate_jobs TO {role};
GRANT SELECT, INSERT (job_id, type, at) ON langmem_stack.procrastinate_events TO {role};
GRANT SELECT (job_id), UPDATE (job_id) ON langmem_stack.procrastinate_periodic_defers TO {role};  -- for a trigger
GRANT SELECT ON langmem_stack.job_failure TO {role};
GRANT USAGE ON SEQUENCE
    langmem_stack.text_id, langmem_stack.procrastinate_jobs_id_seq, langmem_stack.procrastinate_events_id_seq
    TO {role};

-- Each policy is called `own`, and there is one for a table, for all that can be done with it. What it
-- compares with is found out once in a statement, in a subquery, and not for each row.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT relname FROM pg_class
        WHERE relnamespace = 'langmem_stack'::regnamespace AND relkind IN ('r', 'p') AND (
            relname IN ('namespace', 'item', 'item_text', 'posting', 'embedding', 'session', 'message', 'formed',
                        'audit', 'erasure', 'job_failure', 'binding_key')
            OR starts_with(relname, 'embedding_') AND relispartition  -- seen through the table alone
            OR starts_with(relname, 'procrastinate_') AND relname <> 'procrastinate_workers'
        )
    LOOP
        EXECUTE format('ALTER TABLE langmem_stack.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('DROP POLICY IF EXISTS own ON langmem_stack.%I', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['session', 'message', 'formed'] LOOP
        EXECUTE format('CREATE POLICY own ON langmem_stack.%I USING (user_id = (SELECT langmem_stack.scope()))', name);
    END LOOP;
    -- Not as an equation: that would be counted into how many rows a planner expects, a second time beside the
    -- equation of the statement itself, and take it away from the HNSW index.
    FOREACH name IN ARRAY ARRAY['item', 'item_text', 'embedding'] LOOP
        EXECUTE format(
            'CREATE POLICY own ON langmem_stack.%I USING '
            '(coalesce(namespace_id IN (SELECT id FROM langmem_stack.namespace), false))', name
        );
    END LOOP;
END $$;

-- A user's namespaces are those whose first label it is.
CREATE INDEX IF NOT EXISTS namespace_user ON langmem_stack.namespace ((labels[1]));
CREATE POLICY own ON langmem_stack.namespace USING (labels[1] = (SELECT langmem_stack.scope()));

-- As an equation with what the index begins with: it skips the words of others. Else what was said could be
-- guessed at word by word, since EXPLAIN ANALYZE tells how many entries were met and left out.
CREATE POLICY own ON langmem_stack.posting USING (namespace_id = ANY (ARRAY(SELECT id FROM langmem_stack.namespace)));

CREATE POLICY own ON langmem_stack.audit USING
    (user_id = ANY (ARRAY[(SELECT langmem_stack.scope()), (SELECT langmem_stack.scope_digest())]));
CREATE POLICY own ON langmem_stack.erasure
    USING (user_digest = (SELECT langmem_stack.scope_digest()))
    WITH CHECK (user_digest = (SELECT langmem_stack.scope_digest())
                AND coalesce(user_id = (SELECT langmem_stack.scope()), true));

-- Jobs that form this user's sessions, as `queue_sessions` writes them, and under no other session's lock.
CREATE POLICY own ON langmem_stack.procrastinate_jobs
    USING (args ->> 'user_id' = (SELECT langmem_stack.scope()))
    WITH CHECK (
        args ->> 'user_id' = (SELECT langmem_stack.scope())
        AND queue_name = 'langmem_formation' AND task_name = 'langmem_stack.form' AND queueing_lock IS NULL
        AND lock IS NOT DISTINCT FROM encode(
            sha256(convert_to(jsonb_build_array(args -> 'user_id', args -> 'session_id')::text, 'UTF8')), 'hex'
        )
    );
CREATE POLICY own ON langmem_stack.procrastinate_events
    USING (EXISTS (SELECT FROM langmem_stack.procrastinate_jobs AS job WHERE job.id = job_id));
CREATE POLICY own ON langmem_stack.job_failure
    USING (EXISTS (SELECT FROM langmem_stack.procrastinate_jobs AS job WHERE job.id = job_id));

-- note --
-- The last statement of the installation.
COMMENT ON FUNCTION langmem_stack.bind(text) IS {digest};
