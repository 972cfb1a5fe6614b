-- The store: items, the texts by which they are found, and search over both of a text's legs.

-- get_items --
SELECT item.*
FROM json_to_recordset(%(wanted)s::json) AS wanted (namespace text[], key text)
JOIN langmem_stack.item USING (namespace, key);

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
-- Of items that are put again: texts of paths that are gone must not be found any more.
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
), to_tsvector(%(language)s::regconfig, left(text, 200000)) AS words  -- a tsvector holds 1 MB at most
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
-- an item counts by its best text. Items without any text come last, without a score.
WITH candidate AS MATERIALIZED (
    SELECT item.namespace, item.key
    FROM langmem_stack.item
    WHERE {scope} AND {filter}
), candidate_text AS MATERIALIZED (
    SELECT namespace, key, path, words, length,
           CASE WHEN model = %(model)s THEN 1 - (embedding <=> %(vector)s::text::halfvec) END AS similarity
    FROM candidate JOIN langmem_stack.item_text USING (namespace, key)
), wanted AS (
    SELECT lexeme FROM unnest(to_tsvector(%(language)s::regconfig, %(query)s))
), occurrence AS (
    SELECT namespace, key, path, length, found.lexeme, coalesce(cardinality(found.positions), 1) AS times
    FROM candidate_text, unnest(words) AS found
    WHERE found.lexeme IN (SELECT lexeme FROM wanted)
), corpus AS (
    SELECT count(*)::float8 AS texts, greatest(avg(length), 1)::float8 AS length FROM candidate_text
), weight AS (
    SELECT lexeme, ln(1 + (corpus.texts - count(*) + 0.5) / (count(*) + 0.5)) AS idf
    FROM occurrence, corpus
    GROUP BY lexeme, corpus.texts
), lexical AS (
    SELECT namespace, key, path,
           sum(idf * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * occurrence.length / corpus.length))) AS bm25
    FROM occurrence JOIN weight USING (lexeme), corpus
    GROUP BY namespace, key, path
), leg AS (
    SELECT namespace, key, similarity, coalesce(bm25, 0) AS bm25
    FROM candidate_text LEFT JOIN lexical USING (namespace, key, path)
), scaled AS (
    SELECT namespace, key,
           coalesce(greatest(similarity, 0) / nullif(max(similarity) OVER (), 0), 0) AS dense,
           coalesce(bm25 / nullif(max(bm25) OVER (), 0), 0) AS lexical
    FROM leg
), ranked AS (
    SELECT namespace, key, max((dense + lexical) / 2) AS score FROM scaled GROUP BY namespace, key
)
SELECT item.*, ranked.score
FROM candidate
LEFT JOIN ranked USING (namespace, key)
JOIN langmem_stack.item USING (namespace, key)
ORDER BY score DESC NULLS LAST, updated_at DESC, namespace, key
LIMIT %(limit)s OFFSET %(offset)s;

-- list_namespaces --
SELECT DISTINCT namespace[1:%(max_depth)s] AS namespace
FROM langmem_stack.item
WHERE {filter}
ORDER BY 1
LIMIT %(limit)s OFFSET %(offset)s;

-- texts_without_embedding --
SELECT namespace, key, path, text
FROM langmem_stack.item_text
WHERE embedding IS NULL AND {scope}
ORDER BY namespace, key, path
LIMIT %(limit)s;

-- add_embeddings --
-- Only where the text is still the one that was embedded.
UPDATE langmem_stack.item_text AS old
SET model = %(model)s, embedding = new.embedding::halfvec
FROM json_to_recordset(%(texts)s::json) AS new (namespace text[], key text, path text, text text, embedding text)
WHERE old.namespace = new.namespace AND old.key = new.key AND old.path = new.path AND old.text = new.text
RETURNING 1;

-- embedding_models --
SELECT id, name, dims FROM langmem_stack.embedding_model ORDER BY id;

-- add_embedding_model --
INSERT INTO langmem_stack.embedding_model (name, dims) VALUES (%(name)s, %(dims)s) ON CONFLICT (name) DO NOTHING;

-- forget_items --
DELETE FROM langmem_stack.item WHERE {scope} RETURNING 1;
