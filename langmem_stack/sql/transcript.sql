-- The transcript: append-only, each message exactly once, in order.

-- lock_sessions --
-- One writer of a session at a time; sorted, so that two batches can't wait for each other.
INSERT INTO langmem_stack.session (user_id, session_id)
SELECT DISTINCT user_id, session_id
FROM unnest(%(user_ids)s::text[], %(session_ids)s::text[]) AS new (user_id, session_id)
ORDER BY user_id, session_id
ON CONFLICT (user_id, session_id) DO UPDATE SET last_position = session.last_position;

-- append_messages --
-- Runs behind lock_sessions. A message whose id the session already has is left out.
WITH numbered AS (
    SELECT new.*, last_position + row_number() OVER (PARTITION BY user_id, session_id ORDER BY ordinal) AS position
    FROM unnest(
        %(user_ids)s::text[], %(session_ids)s::text[], %(message_ids)s::text[],
        %(messages)s::json[], %(occurred_at)s::timestamptz[], %(characters)s::bigint[]
    ) WITH ORDINALITY AS new (user_id, session_id, message_id, message, occurred_at, characters, ordinal)
    JOIN langmem_stack.session USING (user_id, session_id)
    WHERE NOT EXISTS (
        SELECT FROM langmem_stack.message AS old
        WHERE old.user_id = new.user_id AND old.session_id = new.session_id AND old.message_id = new.message_id
    )
), appended AS (
    INSERT INTO langmem_stack.message (user_id, session_id, position, message_id, message, occurred_at)
    SELECT user_id, session_id, position, message_id, message, occurred_at FROM numbered
    RETURNING user_id, session_id, position, message_id
), newest AS (
    SELECT DISTINCT ON (user_id, session_id)
           user_id, session_id, position, occurred_at,
           sum(characters) OVER (PARTITION BY user_id, session_id) AS characters
    FROM numbered
    ORDER BY user_id, session_id, position DESC
), moved AS (
    UPDATE langmem_stack.session
    SET last_position = newest.position, active_at = greatest(active_at, newest.occurred_at),
        unformed = unformed + newest.characters, appended_at = now()
    FROM newest
    WHERE session.user_id = newest.user_id AND session.session_id = newest.session_id
)
SELECT user_id, session_id, message_id, position FROM appended ORDER BY user_id, session_id, position;

-- index_turns --
-- Makes what this transaction appended an item of the store, numbered as in the transcript.
INSERT INTO langmem_stack.item (namespace_id, key, value)
SELECT namespace.id, turn.key, turn.value || jsonb_build_object('turn', message.position)
FROM json_to_recordset(%(turns)s::json) AS turn (
    namespace text[], key text, value jsonb, user_id text, session_id text, message_id text
)
JOIN langmem_stack.message USING (user_id, session_id, message_id)
JOIN langmem_stack.namespace ON labels = turn.namespace
WHERE message.recorded_at = now()  -- the moment at which this transaction began
ON CONFLICT (namespace_id, key) DO NOTHING;

-- read_messages --
-- The newest messages of a session, oldest first; all of them when the limit is null.
SELECT * FROM (
    SELECT position, message_id, message::text AS message, occurred_at
    FROM langmem_stack.message
    WHERE user_id = %(user_id)s AND session_id = %(session_id)s
    ORDER BY position DESC
    LIMIT %(limit)s
) AS newest
ORDER BY position;

-- tail_ids --
-- The running conversation: the summary, and the ids of the newest messages that it does not cover, the
-- newest first; all of them when the limit is null.
SELECT summary, ARRAY(
    SELECT message_id
    FROM langmem_stack.message
    WHERE message.user_id = session.user_id AND message.session_id = session.session_id AND position > covered
    ORDER BY position DESC
    LIMIT %(limit)s
) AS ids
FROM langmem_stack.session
WHERE user_id = %(user_id)s AND session_id = %(session_id)s;

-- tail --
-- As tail_ids, with the messages, of one moment.
SELECT summary, coalesce(ids, ARRAY[]::text[]) AS ids, coalesce(messages, ARRAY[]::text[]) AS messages
FROM langmem_stack.session, LATERAL (
    SELECT array_agg(message_id ORDER BY position DESC) AS ids,
           array_agg(message ORDER BY position DESC) AS messages
    FROM (
        SELECT position, message_id, message::text AS message
        FROM langmem_stack.message
        WHERE message.user_id = session.user_id AND message.session_id = session.session_id AND position > covered
        ORDER BY position DESC
        LIMIT %(limit)s
    ) AS newest
) AS uncovered
WHERE user_id = %(user_id)s AND session_id = %(session_id)s;

-- fold --
-- Lets a new summary cover the given messages too, if the summary and the messages after it are as they
-- were read. Positions are given out under the lock on the session, so nothing can come in between later.
UPDATE langmem_stack.session
SET summary = %(summary)s, covered = folded.position
FROM (
    SELECT max(position) AS position, array_agg(message_id ORDER BY position) AS ids
    FROM (
        SELECT position, message_id
        FROM langmem_stack.message JOIN langmem_stack.session USING (user_id, session_id)
        WHERE user_id = %(user_id)s AND session_id = %(session_id)s AND position > covered
        ORDER BY position
        LIMIT cardinality(%(ids)s::text[])
    ) AS next
) AS folded
WHERE session.user_id = %(user_id)s AND session.session_id = %(session_id)s
  AND session.summary = %(before)s AND folded.position > session.covered AND folded.ids = %(ids)s::text[]
RETURNING session.covered;

-- clear --
-- Begins a new running conversation; what was said stays in the transcript.
UPDATE langmem_stack.session SET summary = '', covered = last_position
WHERE user_id = %(user_id)s AND session_id = %(session_id)s;

-- list_sessions --
SELECT session_id, active_at, (
    SELECT count(*) FROM langmem_stack.message
    WHERE message.user_id = session.user_id AND message.session_id = session.session_id
) AS messages
FROM langmem_stack.session
WHERE user_id = %(user_id)s
ORDER BY active_at DESC, session_id;

-- sources --
SELECT session_id, message_id, message::text AS message, occurred_at
FROM unnest(%(session_ids)s::text[], %(message_ids)s::text[]) WITH ORDINALITY
     AS wanted (session_id, message_id, ordinal)
JOIN langmem_stack.message USING (session_id, message_id)
WHERE user_id = %(user_id)s
ORDER BY ordinal;
