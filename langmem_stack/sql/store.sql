-- The store: reading and writing items and their texts. Search has a file of its own.

-- get_items --
SELECT labels AS namespace, item.key, value, created_at, updated_at, ttl
FROM json_to_recordset(%(wanted)s::json) AS wanted (namespace text[], key text)
JOIN langmem_stack.namespace ON labels = wanted.namespace
JOIN langmem_stack.item ON item.namespace_id = namespace.id AND item.key = wanted.key
WHERE item.expires_at IS NULL OR item.expires_at > now();

-- get_item --
SELECT value, created_at, updated_at, ttl
FROM langmem_stack.namespace JOIN langmem_stack.item ON namespace_id = namespace.id
WHERE labels = %(namespace)s AND key = %(key)s AND (expires_at IS NULL OR expires_at > now());

-- refresh_items --
-- The TTL of an item counts from its last access. Whoever holds an item's lock is refreshing or putting it;
-- waiting for that would delay a read and could deadlock.
WITH due AS (
    SELECT item.namespace_id, item.key
    FROM json_to_recordset(%(read)s::json) AS read (namespace text[], key text)
    JOIN langmem_stack.namespace ON labels = read.namespace
    JOIN langmem_stack.item ON item.namespace_id = namespace.id AND item.key = read.key
    WHERE ttl IS NOT NULL AND expires_at > now()
    FOR NO KEY UPDATE OF item SKIP LOCKED
)
UPDATE langmem_stack.item SET expires_at = now() + ttl * interval '1 minute'
FROM due
WHERE item.namespace_id = due.namespace_id AND item.key = due.key;

-- lock_namespaces --
-- First in every batch that writes: writers of a namespace queue here, in one order, so that they don't
-- deadlock. Namespaces that something is put into are made.
INSERT INTO langmem_stack.namespace (labels, shard, expires)
SELECT labels, shard, expires
FROM json_to_recordset(%(namespaces)s::json) AS wanted (
    labels text[], shard smallint, put boolean, expires boolean
)
WHERE put OR EXISTS (SELECT FROM langmem_stack.namespace AS known WHERE known.labels = wanted.labels)
ORDER BY labels COLLATE "C"
ON CONFLICT (labels) DO UPDATE SET expires = namespace.expires OR excluded.expires;

-- delete_items --
DELETE FROM langmem_stack.item
USING json_to_recordset(%(deleted)s::json) AS deleted (namespace text[], key text), langmem_stack.namespace
WHERE labels = deleted.namespace AND item.namespace_id = namespace.id AND item.key = deleted.key;

-- put_items --
-- An item that has expired is gone, swept or not: putting it again makes a new one.
INSERT INTO langmem_stack.item (namespace_id, key, value, ttl, expires_at)
SELECT namespace.id, key, value, ttl, now() + ttl * interval '1 minute'
FROM json_to_recordset(%(items)s::json) AS new (namespace text[], key text, value jsonb, ttl double precision)
JOIN langmem_stack.namespace ON labels = new.namespace
ON CONFLICT (namespace_id, key) DO UPDATE SET
    value = excluded.value, ttl = excluded.ttl, expires_at = excluded.expires_at, updated_at = now(),
    created_at = CASE WHEN item.expires_at <= now() THEN now() ELSE item.created_at END;

-- drop_texts --
-- Of items that are put again: a text that is not in the new value must not be found any more.
DELETE FROM langmem_stack.item_text AS old
USING json_to_recordset(%(items)s::json) AS new (namespace text[], key text), langmem_stack.namespace
WHERE labels = new.namespace AND old.namespace_id = namespace.id AND old.key = new.key
  AND NOT EXISTS (
      SELECT FROM json_to_recordset(%(texts)s::json) AS kept (namespace text[], key text, path text, text text)
      WHERE kept.namespace = new.namespace AND kept.key = new.key AND kept.path = old.path AND kept.text = old.text
  );

-- known_texts --
-- Which texts of these items have their vectors already.
SELECT wanted.namespace, wanted.key, path, md5(text) AS digest
FROM json_to_recordset(%(items)s::json) AS wanted (namespace text[], key text)
JOIN langmem_stack.namespace ON labels = wanted.namespace
JOIN langmem_stack.item_text ON item_text.namespace_id = namespace.id AND item_text.key = wanted.key
JOIN langmem_stack.embedding ON embedding.shard = namespace.shard
     AND embedding.namespace_id = item_text.namespace_id AND text_id = item_text.id
WHERE model = %(model)s;

-- put_texts --
-- The words of a text are its own and those of its date: "what happened in May?" is asked in words too.
INSERT INTO langmem_stack.item_text (namespace_id, id, key, path, text, words, length, place, speaker)
SELECT namespace_id, id, key, path, text, words,
       (SELECT coalesce(sum(coalesce(cardinality(positions), 1)), 0) FROM unnest(words)),
       langmem_stack.place(value, id), speaker
FROM (
    SELECT item.namespace_id, item.key, item.value, path, text, speaker,
           nextval('langmem_stack.text_id') AS id,
           to_tsvector(%(language)s::regconfig, left(text, 50000))  -- a tsvector holds 1 MB at most
           || to_tsvector(%(language)s::regconfig, coalesce(to_char(said_on, 'FMDay FMDD FMMonth YYYY'), ''))
           AS words
    FROM json_to_recordset(%(texts)s::json) AS new (
        namespace text[], key text, path text, text text, speaker text, said_on date
    )
    JOIN langmem_stack.namespace ON labels = new.namespace
    JOIN langmem_stack.item ON item.namespace_id = namespace.id AND item.key = new.key
) AS new
ON CONFLICT (namespace_id, key, path) DO UPDATE SET
    words = excluded.words, length = excluded.length, speaker = excluded.speaker,
    place = CASE WHEN excluded.place > 0 THEN excluded.place ELSE -16 * item_text.id END
WHERE item_text.text = excluded.text
  AND (item_text.words <> excluded.words OR item_text.speaker IS DISTINCT FROM excluded.speaker
       OR greatest(item_text.place, 0) <> greatest(excluded.place, 0));

-- put_embeddings --
-- Only where the text is still the one that was embedded, and the model still the current one or the one
-- that reembed() is filling in. A text that is left without a vector waits for one.
INSERT INTO langmem_stack.embedding (shard, namespace_id, text_id, model, {column})
SELECT namespace.shard, item_text.namespace_id, item_text.id, %(model)s, new.embedding::{type}
FROM json_to_recordset(%(texts)s::json) AS new (namespace text[], key text, path text, text text, embedding text)
JOIN langmem_stack.namespace ON labels = new.namespace
JOIN langmem_stack.item_text ON item_text.namespace_id = namespace.id AND item_text.key = new.key
     AND item_text.path = new.path AND item_text.text = new.text
WHERE new.embedding IS NOT NULL
  AND EXISTS (SELECT FROM langmem_stack.embedding_model AS m WHERE m.id = %(model)s AND (m.current OR NOT %(current)s))
ON CONFLICT (namespace_id, text_id, model, shard) DO NOTHING
RETURNING 1;

-- list_namespaces --
SELECT DISTINCT labels[1:%(max_depth)s] AS namespace
FROM langmem_stack.namespace
WHERE {filter}
  AND EXISTS (SELECT FROM langmem_stack.item
              WHERE namespace_id = namespace.id AND (expires_at IS NULL OR expires_at > now()))
ORDER BY 1
LIMIT %(limit)s OFFSET %(offset)s;

-- texts_without_embedding --
-- The next page of those that wait for a vector of a model, behind the last one of the page before.
SELECT labels AS namespace, namespace_id, key, path, text, item_text.id
FROM langmem_stack.item_text JOIN langmem_stack.namespace ON namespace.id = namespace_id
WHERE {scope} AND (namespace_id, item_text.id) > (%(after_namespace)s, %(after_id)s)
  AND NOT EXISTS (SELECT FROM langmem_stack.embedding
                  WHERE embedding.shard = namespace.shard AND embedding.namespace_id = item_text.namespace_id
                    AND text_id = item_text.id AND model = %(model)s)
ORDER BY namespace_id, item_text.id
LIMIT %(limit)s;

-- count_texts --
SELECT count(*) AS texts, count(*) FILTER (WHERE NOT EXISTS (
           SELECT FROM langmem_stack.embedding
           WHERE embedding.shard = namespace.shard AND embedding.namespace_id = item_text.namespace_id
             AND text_id = item_text.id AND model = %(model)s
       )) AS waiting
FROM langmem_stack.item_text JOIN langmem_stack.namespace ON namespace.id = namespace_id;

-- sweep_items --
-- Expired items of one namespace, which is locked before them as in every batch that writes.
WITH locked AS MATERIALIZED (
    SELECT id FROM langmem_stack.namespace
    WHERE id = (SELECT namespace_id FROM langmem_stack.item WHERE expires_at <= now() ORDER BY expires_at LIMIT 1)
    FOR NO KEY UPDATE
), expired AS MATERIALIZED (
    SELECT namespace_id, key FROM locked JOIN langmem_stack.item ON namespace_id = id
    WHERE expires_at <= now()
    LIMIT %(limit)s
)
DELETE FROM langmem_stack.item USING expired
WHERE item.namespace_id = expired.namespace_id AND item.key = expired.key AND item.expires_at <= now()
RETURNING 1;

-- embedding_models --
SELECT id, name, dims, vector_type, current FROM langmem_stack.embedding_model ORDER BY id;

-- text_search_configuration --
SELECT 1 FROM pg_ts_config WHERE %(language)s::text IN (cfgname::text, cfgnamespace::regnamespace || '.' || cfgname);

-- add_embedding_model --
INSERT INTO langmem_stack.embedding_model (name, dims, vector_type)
VALUES (%(name)s, %(dims)s, %(vector_type)s)
ON CONFLICT (name, dims, vector_type) DO NOTHING;

-- lock_indexes --
-- IF NOT EXISTS does not keep two sessions from creating the same index at once.
SELECT pg_advisory_xact_lock(hashtext('langmem_stack.embedding'));

-- hnsw_index --
-- One for each model, made before the model has vectors: writers wait for one reading of the table.
CREATE INDEX IF NOT EXISTS {name} ON langmem_stack.embedding
USING hnsw (({column}::{type}) {operators}) WHERE model = {model};

-- hnsw_index_name --
SELECT to_regclass(%(name)s) AS found;

-- first_embedding_model --
-- The first one is the database's model; only reembed() makes another one current.
UPDATE langmem_stack.embedding_model SET current = true
WHERE id = (SELECT min(id) FROM langmem_stack.embedding_model)
  AND NOT EXISTS (SELECT FROM langmem_stack.embedding_model WHERE current);

-- retire_embedding_model --
UPDATE langmem_stack.embedding_model SET current = false WHERE current AND id <> %(model)s;

-- choose_embedding_model --
UPDATE langmem_stack.embedding_model SET current = true WHERE id = %(model)s;

-- drop_embeddings --
-- Vectors of a model that is not current any more, some at a time.
DELETE FROM langmem_stack.embedding AS old
USING (SELECT shard, namespace_id, text_id, model FROM langmem_stack.embedding
       WHERE model NOT IN (SELECT id FROM langmem_stack.embedding_model WHERE current)
       LIMIT %(limit)s) AS part
WHERE old.shard = part.shard AND old.namespace_id = part.namespace_id AND old.text_id = part.text_id AND old.model = part.model
RETURNING 1;

-- lock_below --
SELECT FROM langmem_stack.namespace WHERE {scope} ORDER BY labels FOR UPDATE;

-- forget_items --
DELETE FROM langmem_stack.item USING langmem_stack.namespace WHERE namespace.id = namespace_id AND {scope} RETURNING 1;

-- forget_namespaces --
DELETE FROM langmem_stack.namespace WHERE {scope};
