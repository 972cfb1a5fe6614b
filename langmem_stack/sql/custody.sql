-- Custody: erasing, exporting, rebuilding and retiring what is kept of a user. Each locks sessions first and
-- namespaces second, as every writer does.

-- begin_erasure --
-- The one that is not finished, if there is one for the same.
WITH known AS (
    SELECT id, sessions, counts, memory_kind FROM langmem_stack.erasure
    WHERE finished_at IS NULL AND user_id = %(user_id)s AND session_id IS NOT DISTINCT FROM %(session_id)s
      AND memory IS NOT DISTINCT FROM %(memory)s
      AND (%(memory_kind)s::text IS NULL OR memory_kind IS NOT DISTINCT FROM %(memory_kind)s)
    ORDER BY id LIMIT 1
), made AS (
    INSERT INTO langmem_stack.erasure (user_digest, kind, user_id, session_id, memory, memory_kind)
    SELECT %(user_digest)s::text, %(kind)s::text, %(user_id)s::text, %(session_id)s::text, %(memory)s::text,
           %(memory_kind)s::text
    WHERE NOT EXISTS (SELECT FROM known)
    RETURNING id, sessions, counts, memory_kind
)
SELECT * FROM known UNION ALL SELECT * FROM made;

-- unfinished_erasures --
SELECT user_id, session_id, memory, memory_kind FROM langmem_stack.erasure WHERE finished_at IS NULL ORDER BY id;

-- is_being_erased --
SELECT id FROM langmem_stack.erasure
WHERE finished_at IS NULL AND user_id = %(user_id)s AND kind = 'user' LIMIT 1;

-- note_counts --
UPDATE langmem_stack.erasure SET counts = %(counts)s::jsonb WHERE id = %(id)s AND finished_at IS NULL;

-- finish_erasure --
UPDATE langmem_stack.erasure
SET finished_at = now(), counts = %(counts)s::jsonb, user_id = NULL, session_id = NULL, memory = NULL,
    memory_kind = NULL, sessions = '{}'
WHERE id = %(id)s;

-- forget_erased_facts --
-- Whoever is gone has no facts that could be formed again.
UPDATE langmem_stack.erasure SET fact = NULL WHERE user_digest = %(user_digest)s AND fact IS NOT NULL;

-- session_ids --
SELECT session_id FROM langmem_stack.session WHERE user_id = %(user_id)s ORDER BY session_id;

-- lock_sessions --
SELECT count(*) FROM (
    SELECT FROM langmem_stack.session
    WHERE user_id = %(user_id)s AND session_id = coalesce(%(session_id)s, session_id)
    ORDER BY session_id
    FOR UPDATE
) AS locked;

-- erase_messages --
WITH gone AS (
    DELETE FROM langmem_stack.message
    WHERE user_id = %(user_id)s AND session_id = coalesce(%(session_id)s, session_id)
    RETURNING 1
)
SELECT count(*) AS gone FROM gone;

-- erase_sessions --
-- What was formed of them, and how far, goes with them. Redis is told by these ids, also by a later attempt.
WITH gone AS (
    DELETE FROM langmem_stack.session
    WHERE user_id = %(user_id)s AND session_id = coalesce(%(session_id)s, session_id)
    RETURNING session_id
), noted AS (
    UPDATE langmem_stack.erasure SET sessions = sessions || ARRAY(SELECT session_id FROM gone)
    WHERE id = %(id)s
)
SELECT session_id FROM gone;

-- erase_items --
-- All below a namespace, with their texts, words and vectors.
WITH gone AS (
    DELETE FROM langmem_stack.item USING langmem_stack.namespace
    WHERE namespace.id = namespace_id AND {scope}
    RETURNING CASE WHEN cardinality(labels) = 2 THEN labels[2] END AS kind
)
SELECT kind, count(*) AS gone FROM gone GROUP BY kind;

-- erase_turns --
WITH gone AS (
    DELETE FROM langmem_stack.item USING langmem_stack.namespace
    WHERE namespace.id = namespace_id AND labels = ARRAY[%(user_id)s, 'turns']
      AND value ->> 'session' = %(session_id)s
      AND (%(message_id)s::text IS NULL OR value ->> 'message_id' = %(message_id)s)
    RETURNING 'turns' AS kind
)
SELECT kind, count(*) AS gone FROM gone GROUP BY kind;

-- erase_facts --
-- A fact loses the support that is erased, and with the last support of its own it goes: what it has from one
-- that it refines supports that one. One that is named goes whenever it was believed: among the superseded
-- its key has the time behind it. Links lead past what is gone; what nothing follows any more has none, and
-- `orphans` finds it.
WITH RECURSIVE fact AS MATERIALIZED (
    SELECT namespace_id, key, CASE labels[2] WHEN 'facts' THEN key ELSE regexp_replace(key, '@\d+T\d+$', '') END AS name,
           value, labels[2] AS kind, value ->> 'superseded_by' AS successor,
           CASE WHEN jsonb_typeof(value -> 'sources') = 'array' THEN value -> 'sources' ELSE '[]' END AS sources,
           CASE WHEN jsonb_typeof(value -> 'supersedes') = 'array' THEN value -> 'supersedes' ELSE '[]' END AS supersedes
    FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
    WHERE labels = ARRAY[%(user_id)s, 'facts'] OR labels = ARRAY[%(user_id)s, 'superseded'] AND value ? 'kind'
), hit AS MATERIALIZED (
    SELECT namespace_id, key, left_over.sources, own
    FROM fact, LATERAL (
        SELECT coalesce(jsonb_agg(source ORDER BY ordinal), '[]') AS sources,
               coalesce(bool_or(NOT EXISTS (
                   SELECT FROM fact AS vaguer
                   WHERE vaguer.successor = fact.name AND vaguer.value ->> 'reason' = 'refined'
                     AND vaguer.sources @> jsonb_build_array(source)
               )), false) AS own
        FROM jsonb_array_elements(fact.sources) WITH ORDINALITY AS each (source, ordinal)
        WHERE NOT source @> %(source)s::jsonb
    ) AS left_over
    WHERE fact.sources @> jsonb_build_array(%(source)s::jsonb)
), doomed AS MATERIALIZED (
    SELECT fact.* FROM fact
    WHERE name = %(fact)s OR (namespace_id, key) IN (SELECT namespace_id, key FROM hit WHERE NOT own)
), alive AS MATERIALIZED (
    SELECT fact.* FROM fact WHERE (namespace_id, key) NOT IN (SELECT namespace_id, key FROM doomed)
), standing AS MATERIALIZED (
    -- What followed which: of a name alone it is not clear, since who moves back believes the same again.
    SELECT name, older AS key FROM alive, jsonb_array_elements_text(supersedes) AS older
), walk AS (
    SELECT key, key AS via, successor FROM alive WHERE successor IS NOT NULL
    UNION
    SELECT walk.key, doomed.key, doomed.successor FROM walk JOIN doomed ON doomed.name = walk.successor
    WHERE doomed.successor IS NOT NULL AND walk.successor NOT IN (SELECT name FROM alive WHERE kind = 'facts')
      AND (walk.successor, walk.via) NOT IN (SELECT name, key FROM standing)
), heir AS MATERIALIZED (
    SELECT key, min(successor) AS name FROM walk
    WHERE successor IN (SELECT name FROM alive WHERE kind = 'facts')
       OR (successor, via) IN (SELECT name, key FROM standing)
    GROUP BY key
), changed AS (
    SELECT alive.namespace_id, alive.key, alive.value
        || CASE WHEN hit.sources IS NULL THEN '{}' ELSE jsonb_build_object('sources', hit.sources) END
        || CASE WHEN successor IS NULL OR heir.name = successor THEN '{}' ELSE jsonb_build_object('superseded_by', heir.name) END
        || CASE WHEN NOT EXISTS (SELECT FROM jsonb_array_elements_text(supersedes) AS older WHERE older IN (SELECT key FROM doomed))
                THEN '{}'
                ELSE jsonb_build_object('supersedes', to_jsonb(ARRAY(
                    SELECT older FROM jsonb_array_elements_text(supersedes) AS older WHERE older IN (SELECT key FROM alive)
                    UNION
                    SELECT heir.key FROM heir WHERE heir.name = alive.name
                    ORDER BY 1
                ))) END AS value
    FROM alive LEFT JOIN hit USING (namespace_id, key) LEFT JOIN heir USING (key)
), updated AS (
    UPDATE langmem_stack.item SET value = changed.value, updated_at = now()
    FROM changed
    WHERE item.namespace_id = changed.namespace_id AND item.key = changed.key AND item.value <> changed.value
), gone AS (
    DELETE FROM langmem_stack.item USING doomed
    WHERE item.namespace_id = doomed.namespace_id AND item.key = doomed.key
    RETURNING kind
), never AS (
    UPDATE langmem_stack.erasure SET fact = %(fact)s
    WHERE id = %(id)s AND %(fact)s::text IN (SELECT name FROM doomed)
)
SELECT kind, count(*) AS gone FROM gone GROUP BY kind;

-- erase_episodes --
-- Those that tell of what is erased, by the messages that they come from or by their key; those that one of
-- these was rolled up into; and what was rolled up into the one that is named. See `orphans` for the rest.
WITH RECURSIVE known AS MATERIALIZED (
    SELECT namespace_id, key, value, labels[2] AS kind
    FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
    WHERE labels = ARRAY[%(user_id)s, 'episodes'] OR labels = ARRAY[%(user_id)s, 'superseded'] AND NOT value ? 'kind'
), part AS MATERIALIZED (
    SELECT value ->> 'superseded_by' AS whole, key FROM known WHERE value ->> 'reason' = 'rolled_up'
), below AS (
    SELECT key FROM known WHERE key = %(key)s
    UNION
    SELECT part.key FROM below JOIN part ON whole = regexp_replace(below.key, '@\d+T\d+$', '')
), doomed AS (
    (
        SELECT key FROM below
        UNION
        SELECT key FROM known
        WHERE value -> 'sources' @> jsonb_build_array(%(source)s::jsonb)
           OR value ->> 'session' = %(session_id)s AND CASE
                  WHEN %(position)s::bigint IS NULL THEN true
                  WHEN jsonb_typeof(value -> 'first') = 'number' AND jsonb_typeof(value -> 'last') = 'number'
                  THEN %(position)s::bigint BETWEEN (value ->> 'first')::numeric AND (value ->> 'last')::numeric
              END
    )
    UNION
    SELECT known.key FROM doomed JOIN part USING (key) JOIN known ON regexp_replace(known.key, '@\d+T\d+$', '') = whole
), gone AS (
    DELETE FROM langmem_stack.item USING known
    WHERE item.namespace_id = known.namespace_id AND item.key = known.key
      AND known.key IN (SELECT key FROM doomed)
    RETURNING kind
)
SELECT kind, count(*) AS gone FROM gone GROUP BY kind;

-- orphans --
-- What gave way to something that is not there any more: facts without a successor, unless they are believed
-- anyway, and episodes that were rolled up into one that is gone.
WITH known AS MATERIALIZED (
    SELECT key, CASE labels[2] WHEN 'superseded' THEN regexp_replace(key, '@\d+T\d+$', '') ELSE key END AS name,
           value, updated_at, labels[2] AS kind
    FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
    WHERE labels IN (ARRAY[%(user_id)s, 'facts'], ARRAY[%(user_id)s, 'episodes'], ARRAY[%(user_id)s, 'superseded'])
)
SELECT DISTINCT ON (name) key, name, CASE WHEN value ? 'kind' THEN 'facts' ELSE 'episodes' END AS kind, updated_at
FROM known
WHERE kind = 'superseded' AND value ? 'reason'
  AND CASE WHEN value ? 'kind' THEN value ->> 'superseded_by' IS NULL
           ELSE value ->> 'reason' = 'rolled_up' AND value ->> 'superseded_by' NOT IN (SELECT name FROM known) END
  AND name NOT IN (SELECT name FROM known WHERE kind <> 'superseded')
ORDER BY name, key DESC;

-- find_memory --
-- What a key names, which may be more than one.
SELECT CASE labels[2] WHEN 'turns' THEN 'turn' WHEN 'facts' THEN 'fact' WHEN 'episodes' THEN 'episode'
                      ELSE CASE WHEN value ? 'kind' THEN 'fact' ELSE 'episode' END END AS kind
FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
WHERE key = %(key)s AND labels IN (ARRAY[%(user_id)s, 'turns'], ARRAY[%(user_id)s, 'episodes'],
                                   ARRAY[%(user_id)s, 'facts'], ARRAY[%(user_id)s, 'superseded'])
UNION
SELECT 'turn' FROM langmem_stack.message
WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND message_id = %(message_id)s
ORDER BY kind;

-- find_turn --
-- The message that a key of the turns leads to, and where it is if it is there.
SELECT coalesce(value ->> 'session', %(session_id)s) AS session_id,
       coalesce(value ->> 'message_id', %(message_id)s) AS message_id,
       position
FROM (SELECT 1) AS one
LEFT JOIN (
    SELECT value FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
    WHERE labels = ARRAY[%(user_id)s, 'turns'] AND key = %(key)s
) AS turn ON true
LEFT JOIN langmem_stack.message ON user_id = %(user_id)s
     AND message.session_id = coalesce(value ->> 'session', %(session_id)s)
     AND message.message_id = coalesce(value ->> 'message_id', %(message_id)s)
WHERE value IS NOT NULL OR position IS NOT NULL;

-- erase_message --
-- With the summary that covers it, and the name of the episode that told of it.
WITH gone AS (
    DELETE FROM langmem_stack.message
    WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND message_id = %(message_id)s
    RETURNING position
), cut AS (
    UPDATE langmem_stack.session SET summary = ''
    FROM gone
    WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND covered >= position AND summary <> ''
), untold AS (
    UPDATE langmem_stack.formed SET episode = NULL
    FROM gone
    WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND position BETWEEN first_position AND last_position
)
SELECT count(*) AS gone FROM gone;

-- erase_turn --
WITH gone AS (
    DELETE FROM langmem_stack.item USING langmem_stack.namespace
    WHERE namespace.id = namespace_id AND labels = ARRAY[%(user_id)s, 'turns'] AND key = %(key)s
    RETURNING 'turns' AS kind
)
SELECT kind, count(*) AS gone FROM gone GROUP BY kind;

-- note_sessions --
UPDATE langmem_stack.erasure SET sessions = sessions || ARRAY[%(session_id)s] WHERE id = %(id)s AND sessions = '{}';

-- erase_audit --
-- Of a user that something was done stays, but neither to whom nor to what.
WITH changed AS (
    UPDATE langmem_stack.audit SET user_id = %(user_digest)s, subject = '', successor = NULL
    WHERE user_id = %(user_id)s
    RETURNING 1
)
SELECT count(*) AS gone FROM changed;

-- erase_audited --
-- What the audit says of memories that are gone stays, but not their keys.
WITH mine AS MATERIALIZED (
    SELECT item.key FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
    WHERE labels = ARRAY[%(user_id)s, 'facts'] OR labels = ARRAY[%(user_id)s, 'episodes'] OR labels = ARRAY[%(user_id)s, 'superseded']
), changed AS (
    UPDATE langmem_stack.audit
    SET subject = CASE WHEN subject IN (SELECT key FROM mine) THEN subject ELSE '' END,
        successor = CASE WHEN successor IN (SELECT key FROM mine UNION SELECT regexp_replace(key, '@\d+T\d+$', '') FROM mine) THEN successor END
    WHERE user_id = %(user_id)s AND subject NOT IN ('', 'session', 'memory', 'memories')
      AND (subject NOT IN (SELECT key FROM mine)
           OR successor NOT IN (SELECT key FROM mine UNION SELECT regexp_replace(key, '@\d+T\d+$', '') FROM mine))
    RETURNING 1
)
SELECT count(*) AS gone FROM changed;

-- add_audit --
INSERT INTO langmem_stack.audit (user_id, action, subject, reason)
VALUES (%(user_id)s, %(action)s, %(subject)s, %(reason)s);

-- erased_facts --
SELECT fact FROM langmem_stack.erasure WHERE user_digest = %(user_digest)s AND fact IS NOT NULL ORDER BY fact;

-- tables_with_statistics --
-- Ours, those of LangGraph's savers, and indexes over expressions, with their tables.
SELECT schemaname AS schema, tablename AS name, coalesce(indexed.relname, relation.relname) AS "table",
       current_setting('server_version_num')::int AS server
FROM pg_stats
JOIN pg_namespace ON nspname = schemaname
JOIN pg_class AS relation ON relation.relname = tablename AND relation.relnamespace = pg_namespace.oid
LEFT JOIN pg_index ON indexrelid = relation.oid
LEFT JOIN pg_class AS indexed ON indexed.oid = indrelid
WHERE schemaname = 'langmem_stack' AND tablename NOT LIKE 'embedding%%' AND tablename NOT LIKE 'documents%%'
   OR pg_table_is_visible(relation.oid) AND tablename IN ('checkpoints', 'checkpoint_blobs', 'checkpoint_writes')
GROUP BY 1, 2, 3 ORDER BY 1, 2;

-- analyze --
ANALYZE (SKIP_LOCKED) {tables};

-- clear_statistics --
-- An empty table keeps those that were gathered before. PostgreSQL 18 can drop them.
SELECT pg_clear_attribute_stats(schemaname, tablename, attname, inherited)
FROM pg_stats
WHERE schemaname = %(schema)s AND tablename = %(name)s AND NOT EXISTS (SELECT FROM {table});

-- messages_after --
-- The next messages of a user, behind the last one of the page before.
SELECT session_id, position, message_id, message::text AS message, occurred_at, recorded_at
FROM langmem_stack.message
WHERE user_id = %(user_id)s AND (session_id, position) > (%(after_session)s::text, %(after_position)s::bigint)
ORDER BY session_id, position
LIMIT %(limit)s;

-- dates_of_turns --
SELECT key, value ->> 'at' AS at FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
WHERE labels = ARRAY[%(user_id)s, 'turns'] AND key = ANY (%(keys)s::text[]) AND value ->> 'at' IS NOT NULL;

-- lock_named_sessions --
-- Whoever erases one of these waits, or was first: then its messages are not there any more.
SELECT count(*) FROM (
    SELECT FROM langmem_stack.session
    WHERE user_id = %(user_id)s AND session_id = ANY (%(session_ids)s::text[])
    ORDER BY session_id
    FOR NO KEY UPDATE
) AS locked;

-- put_turns --
-- What the transcript says, as items of the store, where they are not so already.
INSERT INTO langmem_stack.item AS old (namespace_id, key, value)
SELECT namespace.id, turn.key, turn.value || jsonb_build_object('turn', message.position)
FROM json_to_recordset(%(turns)s::json) AS turn (
    namespace text[], key text, value jsonb, user_id text, session_id text, message_id text
)
JOIN langmem_stack.message USING (user_id, session_id, message_id)
JOIN langmem_stack.namespace ON labels = turn.namespace
ON CONFLICT (namespace_id, key) DO UPDATE SET value = excluded.value, updated_at = now(), ttl = NULL, expires_at = NULL
WHERE old.value <> excluded.value OR old.ttl IS NOT NULL
RETURNING 1;

-- drop_stray_turns --
-- Those whose message is not in the transcript; what a program put there itself names none.
DELETE FROM langmem_stack.item USING langmem_stack.namespace
WHERE namespace.id = namespace_id AND labels = ARRAY[%(user_id)s, 'turns']
  AND value ? 'session' AND value ? 'message_id'
  AND NOT EXISTS (
      SELECT FROM langmem_stack.message
      WHERE message.user_id = %(user_id)s AND session_id = value ->> 'session' AND message_id = value ->> 'message_id'
  )
RETURNING 1;

-- drop_derived --
-- What was formed, and not what a program put there itself: that names no messages.
WITH gone AS (
    DELETE FROM langmem_stack.item USING langmem_stack.namespace
    WHERE namespace.id = namespace_id AND jsonb_typeof(value -> 'sources') = 'array'
      AND labels IN (ARRAY[%(user_id)s, 'episodes'], ARRAY[%(user_id)s, 'facts'], ARRAY[%(user_id)s, 'superseded'])
    RETURNING labels[2] = 'episodes' OR labels[2] = 'superseded' AND NOT value ? 'kind' AS is_episode
)
SELECT count(*) FILTER (WHERE is_episode) AS episodes, count(*) FILTER (WHERE NOT is_episode) AS facts FROM gone;

-- drop_formed --
DELETE FROM langmem_stack.formed WHERE user_id = %(user_id)s;

-- unform --
-- Lets all that was said wait to be formed again.
WITH said AS MATERIALIZED (
    SELECT value ->> 'session' AS session_id, sum(length(value ->> 'text')) AS characters
    FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
    WHERE labels = ARRAY[%(user_id)s, 'turns']
    GROUP BY 1
)
UPDATE langmem_stack.session
SET formed = 0, queued = 0,
    unformed = coalesce((SELECT characters FROM said WHERE said.session_id = session.session_id), 0)
WHERE user_id = %(user_id)s
RETURNING session_id;

-- retire_items --
-- Some of what is older than a moment, of the next namespace that has any; which is locked before its items.
WITH next AS MATERIALIZED (
    SELECT namespace.id FROM langmem_stack.namespace
    WHERE {scope} AND namespace.id >= %(from)s AND EXISTS (
        SELECT FROM langmem_stack.item WHERE namespace_id = namespace.id AND {old}
    )
    ORDER BY namespace.id LIMIT 1
), locked AS MATERIALIZED (
    SELECT id FROM langmem_stack.namespace WHERE id = (SELECT id FROM next) FOR NO KEY UPDATE
), old AS MATERIALIZED (
    SELECT namespace_id, key FROM locked JOIN langmem_stack.item ON namespace_id = id WHERE {old} LIMIT %(limit)s
), gone AS (
    DELETE FROM langmem_stack.item USING old
    WHERE item.namespace_id = old.namespace_id AND item.key = old.key AND {old}
    RETURNING item.namespace_id
)
SELECT id, (SELECT count(*) FROM old) AS found, (SELECT count(*) FROM gone) AS gone FROM next;

-- count_old_items --
SELECT count(*) AS gone
FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
WHERE {scope} AND {old};

-- next_old_session --
-- The next session with messages that are older than a moment and not wanted for anything any more.
SELECT user_id, session_id FROM langmem_stack.session
WHERE user_id = coalesce(%(user_id)s, user_id) AND (user_id, session_id) > (%(after_user)s::text, %(after_session)s::text)
  AND EXISTS (
      SELECT FROM langmem_stack.message
      WHERE message.user_id = session.user_id AND message.session_id = session.session_id
        AND occurred_at < %(until)s AND (%(unformed)s OR position <= formed)
  )
ORDER BY user_id, session_id LIMIT 1;

-- lock_session --
SELECT FROM langmem_stack.session WHERE user_id = %(user_id)s AND session_id = %(session_id)s FOR UPDATE;

-- retire_messages --
WITH gone AS (
    DELETE FROM langmem_stack.message USING (
        SELECT user_id, session_id, position
        FROM langmem_stack.message JOIN langmem_stack.session USING (user_id, session_id)
        WHERE user_id = %(user_id)s AND session_id = %(session_id)s
          AND occurred_at < %(until)s AND (%(unformed)s OR position <= formed)
        ORDER BY position LIMIT %(limit)s
    ) AS old
    WHERE message.user_id = old.user_id AND message.session_id = old.session_id AND message.position = old.position
    RETURNING 1
)
SELECT count(*) AS gone FROM gone;

-- drop_turns_of_session --
-- Those whose message has left the transcript.
DELETE FROM langmem_stack.item USING langmem_stack.namespace
WHERE namespace.id = namespace_id AND labels = ARRAY[%(user_id)s, 'turns'] AND value ->> 'session' = %(session_id)s
  AND NOT EXISTS (
      SELECT FROM langmem_stack.message
      WHERE message.user_id = %(user_id)s AND session_id = %(session_id)s AND message_id = value ->> 'message_id'
  )
RETURNING 1;

-- drop_spent_summary --
-- A summary of which every message has left goes with the last of them.
UPDATE langmem_stack.session SET summary = ''
WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND summary <> '' AND NOT EXISTS (
    SELECT FROM langmem_stack.message
    WHERE message.user_id = session.user_id AND message.session_id = session.session_id AND position <= covered
);

-- drop_empty_session --
DELETE FROM langmem_stack.session
WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND NOT EXISTS (
    SELECT FROM langmem_stack.message
    WHERE message.user_id = session.user_id AND message.session_id = session.session_id
)
RETURNING session_id;

-- count_old_messages --
SELECT count(*) AS gone
FROM langmem_stack.message JOIN langmem_stack.session USING (user_id, session_id)
WHERE user_id = coalesce(%(user_id)s, user_id) AND occurred_at < %(until)s AND (%(unformed)s OR position <= formed);

-- export_sessions --
SELECT session_id, last_position, nullif(active_at, '-infinity') AS active_at, summary, covered, formed, unformed, appended_at
FROM langmem_stack.session
WHERE user_id = %(user_id)s AND session_id > %(after)s
ORDER BY session_id
LIMIT %(limit)s;

-- export_formed --
SELECT session_id, first_position, last_position, formed_at, episode, facts, supported, dropped, calls, tokens
FROM langmem_stack.formed
WHERE user_id = %(user_id)s AND (session_id, last_position) > (%(after_session)s::text, %(after_position)s::bigint)
ORDER BY session_id, last_position
LIMIT %(limit)s;

-- export_items --
SELECT labels AS namespace, item.key, value, created_at, updated_at, ttl, expires_at, coalesce((
    SELECT json_object_agg(path, text ORDER BY path) FROM langmem_stack.item_text
    WHERE item_text.namespace_id = item.namespace_id AND item_text.key = item.key
), '{{}}') AS texts
FROM langmem_stack.item JOIN langmem_stack.namespace ON namespace.id = namespace_id
WHERE {scope} AND (labels, item.key) > (%(after_namespace)s::text[], %(after_key)s::text)
  AND (expires_at IS NULL OR expires_at > now())
ORDER BY labels, item.key
LIMIT %(limit)s;

-- import_sessions --
-- One that is there keeps what it has.
WITH new AS (
    INSERT INTO langmem_stack.session (user_id, session_id, last_position, active_at, summary, covered, formed, unformed, appended_at)
    SELECT %(user_id)s::text, session_id, last_position, coalesce(active_at, '-infinity'), summary, covered, formed, unformed, appended_at
    FROM json_to_recordset(%(rows)s::json) AS new (
        session_id text, last_position bigint, active_at timestamptz, summary text, covered bigint, formed bigint,
        unformed bigint, appended_at timestamptz
    )
    ORDER BY session_id
    ON CONFLICT (user_id, session_id) DO NOTHING
    RETURNING 1
)
SELECT count(*) AS added FROM new;

-- import_messages --
-- To their own places, where these are free; the sessions are locked.
WITH new AS (
    INSERT INTO langmem_stack.message (user_id, session_id, position, message_id, message, occurred_at, recorded_at)
    SELECT %(user_id)s::text, session_id, position, message_id, message, occurred_at, recorded_at
    FROM unnest(
        %(session_ids)s::text[], %(positions)s::bigint[], %(message_ids)s::text[], %(messages)s::json[],
        %(occurred_at)s::timestamptz[], %(recorded_at)s::timestamptz[]
    ) AS new (session_id, position, message_id, message, occurred_at, recorded_at)
    JOIN langmem_stack.session USING (session_id)
    WHERE user_id = %(user_id)s AND position BETWEEN 1 AND last_position
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT count(*) AS added FROM new;

-- unknown_messages --
SELECT session_id, message_id
FROM unnest(%(session_ids)s::text[], %(message_ids)s::text[]) WITH ORDINALITY AS wanted (session_id, message_id, ordinal)
WHERE NOT EXISTS (
    SELECT FROM langmem_stack.message AS known
    WHERE known.user_id = %(user_id)s AND known.session_id = wanted.session_id AND known.message_id = wanted.message_id
)
ORDER BY ordinal;

-- import_formed --
WITH new AS (
    INSERT INTO langmem_stack.formed (user_id, session_id, first_position, last_position, formed_at, episode, facts,
                                      supported, dropped, calls, tokens)
    SELECT %(user_id)s::text, new.session_id, first_position, new.last_position, formed_at, episode, facts, supported, dropped, calls, tokens
    FROM json_to_recordset(%(rows)s::json) AS new (
        session_id text, first_position bigint, last_position bigint, formed_at timestamptz, episode text,
        facts integer, supported integer, dropped integer, calls integer, tokens bigint
    )
    JOIN langmem_stack.session ON user_id = %(user_id)s AND session.session_id = new.session_id
         AND new.last_position <= formed
    FOR KEY SHARE OF session  -- of one that is being erased there is nothing to take in
    ON CONFLICT (user_id, session_id, last_position) DO NOTHING
    RETURNING 1
)
SELECT count(*) AS added FROM new;

-- known_items --
-- Those that are there, and current memories of which a superseded one is.
SELECT wanted.namespace, wanted.key
FROM json_to_recordset(%(items)s::json) AS wanted (namespace text[], key text)
WHERE EXISTS (
    SELECT FROM langmem_stack.namespace JOIN langmem_stack.item ON namespace_id = namespace.id
    WHERE labels = wanted.namespace AND item.key = wanted.key
) OR wanted.namespace IN (ARRAY[%(user_id)s, 'facts'], ARRAY[%(user_id)s, 'episodes']) AND EXISTS (
    SELECT FROM langmem_stack.namespace JOIN langmem_stack.item ON namespace_id = namespace.id
    WHERE labels = ARRAY[%(user_id)s, 'superseded'] AND regexp_replace(item.key, '@\d+T\d+$', '') = wanted.key
      AND item.key >= wanted.key AND item.key < wanted.key || 'A'  -- what comes after '@': the index finds these
);

-- require_new_items --
SELECT langmem_stack.require(NOT EXISTS (
    SELECT FROM json_to_recordset(%(items)s::json) AS new (namespace text[], key text)
    JOIN langmem_stack.namespace ON labels = new.namespace
    JOIN langmem_stack.item ON namespace_id = namespace.id AND item.key = new.key
), 'items that are to be imported were put meanwhile');

-- import_items --
INSERT INTO langmem_stack.item (namespace_id, key, value, created_at, updated_at, ttl, expires_at)
SELECT namespace.id, key, value, new.created_at, new.updated_at, ttl, expires_at
FROM json_to_recordset(%(items)s::json) AS new (
    namespace text[], key text, value jsonb, created_at timestamptz, updated_at timestamptz, ttl double precision,
    expires_at timestamptz
)
JOIN langmem_stack.namespace ON labels = new.namespace;

-- import_erased_facts --
INSERT INTO langmem_stack.erasure (user_digest, kind, finished_at, fact)
SELECT %(user_digest)s::text, 'memory', now(), fact
FROM unnest(%(facts)s::text[]) AS new (fact)
WHERE NOT EXISTS (
    SELECT FROM langmem_stack.erasure AS known WHERE known.user_digest = %(user_digest)s AND known.fact = new.fact
);
