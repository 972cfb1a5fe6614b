-- The store: items, the texts by which they are found, and search over both of a text's legs.

-- get_items --
SELECT item.*
FROM json_to_recordset(%(wanted)s::json) AS wanted (namespace text[], key text)
JOIN langmem_stack.item USING (namespace, key);

-- lock_items --
-- First in every batch that writes: those of the same items queue here, in one order, and never deadlock.
SELECT FROM langmem_stack.item
JOIN json_to_recordset(%(items)s::json) AS wanted (namespace text[], key text) USING (namespace, key)
ORDER BY namespace, key
FOR UPDATE OF item;

-- delete_items --
DELETE FROM langmem_stack.item AS item
USING json_to_recordset(%(deleted)s::json) AS deleted (namespace text[], key text)
WHERE item.namespace = deleted.namespace AND item.key = deleted.key;

-- put_items --
INSERT INTO langmem_stack.item (namespace, key, value)
SELECT namespace, key, value
FROM json_to_recordset(%(items)s::json) AS new (namespace text[], key text, value jsonb)
ORDER BY namespace, key
ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value, updated_at = now();

-- delete_texts --
-- Of items that are put again: old texts must not be found any more. Behind put_items, whose lock keeps
-- another writer's texts from slipping in between.
DELETE FROM langmem_stack.item_text AS old
USING json_to_recordset(%(items)s::json) AS new (namespace text[], key text)
WHERE old.namespace = new.namespace AND old.key = new.key;

-- put_texts --
-- Without a vector the text waits for one; see texts_without_embedding.
INSERT INTO langmem_stack.item_text (namespace, key, path, text, words, length, model, embedding)
SELECT namespace, key, path, text, words,
       (SELECT coalesce(sum(coalesce(cardinality(positions), 1)), 0) FROM unnest(words)),
       CASE WHEN embedding IS NOT NULL THEN %(model)s::smallint END,
       embedding::halfvec
FROM json_to_recordset(%(texts)s::json) AS new (
    namespace text[], key text, path text, text text, embedding text
)
JOIN langmem_stack.item USING (namespace, key),
    to_tsvector(%(language)s::regconfig, left(text, 200000)) AS words  -- a tsvector holds 1 MB at most
ON CONFLICT (namespace, key, path) DO NOTHING;

-- list_items --
-- Search without a query: the latest change first.
SELECT item.*, NULL::float8 AS score
FROM langmem_stack.item
WHERE {scope} AND {filter}
ORDER BY updated_at DESC, namespace, key
LIMIT %(limit)s OFFSET %(offset)s;

-- search_items --
-- Search with a query. Namespace and filter come first; what is left is ranked by both legs: BM25
-- (Robertson and Zaragoza 2009, with k1 = 1.2, b = 0.75 and the document frequencies of what is
-- searched) and cosine similarity. Each leg is scaled to 0..1 over the candidates and weighs half;
-- an item counts by its best text. Items without any text come last, without a score. One pass over the
-- candidates: joins on their keys would be planned for a few rows and be quadratic in many.
WITH candidate AS MATERIALIZED (
    SELECT item.namespace, item.key, item.updated_at, words, length,
           -- a vector that is all zeros in half precision is NaN away from everything
           CASE WHEN model = %(model)s
                THEN greatest(1 - nullif(embedding <=> %(vector)s::halfvec, 'NaN'), 0) END AS similarity
    FROM langmem_stack.item LEFT JOIN langmem_stack.item_text USING (namespace, key)
    WHERE {scope} AND {filter}
), corpus AS MATERIALIZED (
    SELECT count(words)::float8 AS texts, greatest(avg(length), 1)::float8 AS length FROM candidate
), weight AS MATERIALIZED (
    SELECT lexeme, ln(1 + (corpus.texts - count(*) + 0.5) / (count(*) + 0.5)) AS idf
    FROM candidate, unnest(words) AS found, corpus
    WHERE found.lexeme IN (SELECT lexeme FROM unnest(to_tsvector(%(language)s::regconfig, left(%(query)s, 200000))))
    GROUP BY lexeme, corpus.texts
), leg AS MATERIALIZED (
    SELECT namespace, key, updated_at, words IS NOT NULL AS searchable, similarity, (
        SELECT sum(idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * candidate.length / corpus.length)))
        FROM unnest(words) AS found JOIN weight USING (lexeme),
             LATERAL (SELECT coalesce(cardinality(found.positions), 1) AS times) AS counted
    ) AS bm25
    FROM candidate, corpus
), scaled AS (
    SELECT namespace, key, updated_at, searchable,
           coalesce(similarity / nullif(max(similarity) OVER (), 0), 0) AS dense,
           coalesce(bm25 / nullif(max(bm25) OVER (), 0), 0) AS lexical
    FROM leg
), ranked AS MATERIALIZED (
    SELECT namespace, key, max((dense + lexical) / 2) FILTER (WHERE searchable) AS score
    FROM scaled
    GROUP BY namespace, key, updated_at
    ORDER BY score DESC NULLS LAST, updated_at DESC, namespace, key
    LIMIT %(limit)s OFFSET %(offset)s
)
SELECT item.*, ranked.score
FROM ranked JOIN langmem_stack.item USING (namespace, key)
ORDER BY score DESC NULLS LAST, updated_at DESC, namespace, key;

-- list_namespaces --
SELECT DISTINCT namespace[1:%(max_depth)s] AS namespace
FROM langmem_stack.item
WHERE {filter}
ORDER BY 1
LIMIT %(limit)s OFFSET %(offset)s;

-- texts_without_embedding --
-- The next page of those that wait, behind the last one of the page before.
SELECT namespace, key, path, text
FROM langmem_stack.item_text
WHERE embedding IS NULL AND {scope}
  AND (namespace, key, path) > (%(after_namespace)s::text[], %(after_key)s, %(after_path)s)
ORDER BY namespace, key, path
LIMIT %(limit)s;

-- add_embeddings --
-- Behind lock_items. Only where the text is still the one that was embedded, and nobody was faster.
UPDATE langmem_stack.item_text AS old
SET model = %(model)s, embedding = new.embedding::halfvec
FROM json_to_recordset(%(texts)s::json) AS new (namespace text[], key text, path text, text text, embedding text)
WHERE old.namespace = new.namespace AND old.key = new.key AND old.path = new.path AND old.text = new.text
  AND old.embedding IS NULL
RETURNING 1;

-- embedding_models --
SELECT id, name, dims FROM langmem_stack.embedding_model ORDER BY id;

-- add_embedding_model --
-- The first one is the database's model; its vectors are not mixed with another one's.
INSERT INTO langmem_stack.embedding_model (name, dims)
SELECT %(name)s, %(dims)s
WHERE NOT EXISTS (SELECT FROM langmem_stack.embedding_model)
ON CONFLICT (name) DO NOTHING;

-- forget_items --
DELETE FROM langmem_stack.item WHERE {scope} RETURNING 1;
