-- Formation: from the transcript to episodes and facts. Each batch is one transaction, in which the
-- cursor of its session moves: what was done cannot be done again.

-- begin --
-- A job that takes up a session takes the mark from it: from here on new messages queue a job of their own.
-- Somebody may have said meanwhile that the session is to be formed in any case; the job for that has nothing
-- left to do then.
UPDATE langmem_stack.session SET queued = CASE WHEN %(job)s THEN 0 ELSE session.queued END
FROM (
    SELECT user_id, session_id, queued FROM langmem_stack.session
    WHERE user_id = %(user_id)s AND session_id = %(session_id)s
    FOR NO KEY UPDATE
) AS before
WHERE session.user_id = before.user_id AND session.session_id = before.session_id
RETURNING formed, last_position, unformed, appended_at, before.queued = 3 AS due, now() AS now;

-- unformed --
SELECT position, message_id, message::text AS message, occurred_at
FROM langmem_stack.message JOIN langmem_stack.session USING (user_id, session_id)
WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND position > formed
ORDER BY position
LIMIT %(limit)s;

-- unformed_sessions --
SELECT session_id FROM langmem_stack.session
WHERE user_id = %(user_id)s AND last_position > formed
ORDER BY active_at, session_id;

-- use_budget --
-- One call, if the day has one left; else no row. A null is no limit.
INSERT INTO langmem_stack.model_usage AS used (day, calls, tokens)
SELECT (now() AT TIME ZONE 'UTC')::date, 1, 0
WHERE coalesce(%(calls)s::bigint > 0, true) AND coalesce(%(tokens)s::bigint > 0, true)
ON CONFLICT (day) DO UPDATE SET calls = used.calls + 1
WHERE coalesce(used.calls < %(calls)s::bigint, true) AND coalesce(used.tokens < %(tokens)s::bigint, true)
RETURNING day;

-- add_tokens --
-- The day may be another one than that of the call.
INSERT INTO langmem_stack.model_usage AS used (day, calls, tokens)
VALUES ((now() AT TIME ZONE 'UTC')::date, 0, %(tokens)s)
ON CONFLICT (day) DO UPDATE SET tokens = used.tokens + excluded.tokens;

-- lock_session --
-- First in the transaction, so that the next statement sees what others did to the session's messages.
SELECT FROM langmem_stack.session
WHERE user_id = %(user_id)s AND session_id = %(session_id)s
FOR NO KEY UPDATE;

-- advance --
-- Of two that formed the same batch one fails here, and so does what was formed of messages that are not
-- there any more, though others may be in their places.
WITH advanced AS (
    UPDATE langmem_stack.session
    SET formed = %(last)s, queued = CASE WHEN %(last)s = last_position THEN 0 ELSE queued END,
        unformed = CASE WHEN %(last)s = last_position THEN 0
                                           ELSE greatest(unformed - %(characters)s, 0) END
    WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND formed = %(formed)s
      AND ARRAY(
          SELECT message_id FROM langmem_stack.message
          WHERE user_id = %(user_id)s AND session_id = %(session_id)s
            AND position > %(formed)s AND position <= %(last)s
          ORDER BY position
      ) = %(message_ids)s::text[]
    RETURNING 1
)
SELECT langmem_stack.require(EXISTS (SELECT FROM advanced), 'these messages were formed or forgotten meanwhile');

-- require_unchanged --
-- Behind the lock on the namespaces: the items are as they were read, and those that were not there are not.
SELECT langmem_stack.require(
    NOT EXISTS (
        SELECT FROM json_to_recordset(%(items)s::json) AS read (namespace text[], key text, updated_at timestamptz)
        LEFT JOIN langmem_stack.namespace ON labels = read.namespace
        LEFT JOIN langmem_stack.item ON namespace_id = namespace.id AND item.key = read.key
        WHERE item.updated_at IS DISTINCT FROM read.updated_at
    ),
    'memories that this goes by were changed meanwhile'
);

-- find_items --
SELECT labels AS namespace, item.key, value, updated_at
FROM json_to_recordset(%(items)s::json) AS wanted (namespace text[], key text)
JOIN langmem_stack.namespace ON labels = wanted.namespace
JOIN langmem_stack.item ON item.namespace_id = namespace.id AND item.key = wanted.key;

-- move_items --
-- To another namespace of the same user, under another key and with more in their values; with their texts
-- and vectors, so that no model is asked. What is moved is deleted by `drop_moved` behind this.
WITH moves AS (
    SELECT source.id AS from_id, item.key AS from_key, target.id AS to_id, move.to_key,
           (item.value - ARRAY['superseded_by', 'reason', 'valid_to']) || move.value AS value,
           item.created_at, target.shard
    FROM json_to_recordset(%(moves)s::json) AS move (
        from_namespace text[], from_key text, to_namespace text[], to_key text, value jsonb
    )
    JOIN langmem_stack.namespace AS source ON source.labels = move.from_namespace
    JOIN langmem_stack.namespace AS target ON target.labels = move.to_namespace
    JOIN langmem_stack.item ON item.namespace_id = source.id AND item.key = move.from_key
), items AS (
    INSERT INTO langmem_stack.item (namespace_id, key, value, created_at)
    SELECT to_id, to_key, value, created_at FROM moves
    ON CONFLICT (namespace_id, key) DO UPDATE SET value = excluded.value, updated_at = now()
    RETURNING namespace_id, key
)
SELECT count(*) AS moved FROM items;

-- move_texts --
WITH moves AS (
    SELECT source.id AS from_id, from_key, target.id AS to_id, to_key, target.shard
    FROM json_to_recordset(%(moves)s::json) AS move (
        from_namespace text[], from_key text, to_namespace text[], to_key text, value jsonb
    )
    JOIN langmem_stack.namespace AS source ON source.labels = move.from_namespace
    JOIN langmem_stack.namespace AS target ON target.labels = move.to_namespace
), texts AS MATERIALIZED (
    SELECT item_text.*, to_id, to_key, shard, nextval('langmem_stack.text_id') AS new_id
    FROM moves JOIN langmem_stack.item_text ON namespace_id = from_id AND key = from_key
), added AS (
    INSERT INTO langmem_stack.item_text (namespace_id, id, key, path, text, words, length, place, speaker)
    SELECT to_id, new_id, to_key, path, text, words, length, -16 * new_id, speaker FROM texts
    ON CONFLICT (namespace_id, key, path) DO NOTHING
    RETURNING namespace_id, id
)
INSERT INTO langmem_stack.embedding (shard, text_id, namespace_id, model, half, single)
SELECT texts.shard, new_id, to_id, model, half, single
FROM added
JOIN texts ON new_id = added.id
JOIN langmem_stack.embedding ON embedding.shard = texts.shard AND embedding.namespace_id = texts.namespace_id
     AND text_id = texts.id;

-- drop_moved --
DELETE FROM langmem_stack.item
USING json_to_recordset(%(moves)s::json) AS move (from_namespace text[], from_key text), langmem_stack.namespace
WHERE labels = from_namespace AND namespace_id = namespace.id AND item.key = from_key;

-- add_formed --
INSERT INTO langmem_stack.formed (
    user_id, session_id, first_position, last_position, episode, facts, supported, dropped, calls, tokens
) VALUES (
    %(user_id)s, %(session_id)s, %(first)s, %(last)s, %(episode)s, %(facts)s, %(supported)s, %(dropped)s,
    %(calls)s, %(tokens)s
);

-- add_audit --
INSERT INTO langmem_stack.audit (user_id, action, subject, successor, reason)
SELECT %(user_id)s, action, subject, successor, reason
FROM json_to_recordset(%(entries)s::json) AS entry (action text, subject text, successor text, reason text);

-- old_episodes --
-- Episodes of conversations, not of periods, and only what formation wrote so.
SELECT key, value ->> 'text' AS text, value -> 'sources' AS sources, updated_at,
       langmem_stack.moment(value ->> 'at') AS at,
       langmem_stack.moment(value ->> 'ended_at') AS ended_at
FROM langmem_stack.namespace JOIN langmem_stack.item ON namespace_id = namespace.id
WHERE labels = ARRAY[%(user_id)s, 'episodes'] AND langmem_stack.moment(value ->> 'ended_at') < %(before)s
  AND langmem_stack.moment(value ->> 'at') IS NOT NULL AND jsonb_typeof(value -> 'text') = 'string'
  AND jsonb_typeof(value -> 'sources') = 'array' AND NOT value ? 'parts'
ORDER BY 5, key;

-- users_with_old_episodes --
SELECT labels[1] AS user_id FROM langmem_stack.namespace
WHERE cardinality(labels) = 2 AND labels[2] = 'episodes' AND EXISTS (
    SELECT FROM langmem_stack.item
    WHERE namespace_id = namespace.id AND langmem_stack.moment(value ->> 'ended_at') < %(before)s
      AND NOT value ? 'parts'
)
ORDER BY labels;
