-- Search in the store. With a query a search is one statement, put together of the parts below: `scope`,
-- then `near` alone for a dense search, or `near`, `lexical` and `fused` for a hybrid one, then `page`.
-- Namespace, TTL and filter come first, in every leg: only what `passes` is ranked.

-- list_items --
-- Without a query: the latest change first.
SELECT labels AS namespace, key, value, created_at, updated_at, ttl, NULL::float8 AS score
FROM langmem_stack.namespace JOIN langmem_stack.item ON namespace_id = namespace.id
WHERE {scope} AND (item.expires_at IS NULL OR item.expires_at > now()) AND {filter}
ORDER BY updated_at DESC, labels, key
LIMIT %(limit)s OFFSET %(offset)s;

-- passes --
-- With a filter: it looks at the item behind a text.
EXISTS (
    SELECT FROM langmem_stack.item_text AS text_of JOIN langmem_stack.item USING (namespace_id, key)
    WHERE text_of.namespace_id = {row}.namespace_id AND text_of.id = {row}.{id}
      AND (item.expires_at IS NULL OR item.expires_at > now()) AND {filter}
)

-- lives --
-- Without a filter: only what has expired and was not swept yet has to be left out.
{row}.{id} NOT IN (SELECT id FROM expired)

-- scope --
WITH inside AS MATERIALIZED (
    SELECT id, texts, length, expires FROM langmem_stack.namespace WHERE {scope}
), scope AS MATERIALIZED (
    SELECT coalesce(array_agg(id), '{{}}') AS ids, coalesce(bool_or(expires), false) AS expires,
           coalesce(sum(texts), 0)::float8 AS texts,
           -- In a small scope the pages of a search are cut from one ranking, however far one turns them.
           greatest(%(candidates)s, CASE WHEN sum(texts) <= 1000 THEN 1000 ELSE 0 END) AS candidates,
           greatest(sum(length) / nullif(sum(texts), 0), 1)::float8 AS length
    FROM inside
), expired AS MATERIALIZED (
    SELECT item_text.id
    FROM inside
    JOIN langmem_stack.item ON item.namespace_id = inside.id AND expires_at <= now()
    JOIN langmem_stack.item_text ON item_text.namespace_id = inside.id AND item_text.key = item.key
    WHERE (SELECT expires FROM scope)
),

-- near --
-- The dense leg. In a small scope all vectors are looked at. In a large one the HNSW index is walked until
-- enough of what it meets has passed; should it end before, all are looked at after all.
hnsw AS MATERIALIZED (
    SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true),
           set_config('hnsw.ef_search', %(ef_search)s::text, true) AS ready
), indexed AS MATERIALIZED (
    SELECT namespace_id, text_id, {column} <=> %(vector)s::{type} AS distance
    FROM langmem_stack.embedding
    WHERE (SELECT texts FROM scope) > %(exact)s AND (SELECT ready FROM hnsw) IS NOT NULL
      AND {shard} AND model = {model} AND %(vector)s::{type} IS NOT NULL AND {in_scope}
      AND {passes_embedding}
    ORDER BY {column}::{sized_type} <=> %(vector)s::{sized_type}
    LIMIT (SELECT candidates FROM scope)
), near AS MATERIALIZED (
    SELECT namespace_id, text_id, distance FROM indexed
    WHERE (SELECT count(*) FROM indexed) >= (SELECT candidates FROM scope)
    UNION ALL (
        SELECT namespace_id, text_id, {column} <=> %(vector)s::{type} AS distance
        FROM inside JOIN langmem_stack.embedding ON namespace_id = inside.id
        WHERE (SELECT count(*) FROM indexed) < (SELECT candidates FROM scope) AND {shard} AND model = %(model)s
          AND %(vector)s::{type} IS NOT NULL AND {passes_embedding}
        ORDER BY distance, namespace_id, text_id
        LIMIT (SELECT candidates FROM scope)
    )
),

-- cosine --
best AS MATERIALIZED (
    SELECT DISTINCT ON (namespace_id, key) item_text.namespace_id, key, path, 1 - distance AS score,
           1 - distance AS similarity, NULL::float8 AS bm25,
           1 - distance AS dense, 0::float8 AS lexical, 0::float8 AS speaker
    FROM near JOIN langmem_stack.item_text ON item_text.namespace_id = near.namespace_id AND id = text_id
    ORDER BY namespace_id, key, score DESC
),

-- lexical --
-- The lexical leg: BM25F (Robertson, Zaragoza and Taylor 2004; k1 = 1.2, b = 0.75), whose fields are a
-- text and the turns around it in its session, three on each side, the less the further: in a chat the
-- words of a question are often in one turn and its answer in the next.
asked AS MATERIALIZED (
    SELECT lexeme, ordinality AS word
    FROM unnest(to_tsvector(%(language)s::regconfig, left(%(query)s, 10000))) WITH ORDINALITY
), found AS MATERIALIZED (
    SELECT namespace_id, word, place, times / (0.25::float8 + 0.75::float8 * posting.length / scope.length) AS times
    FROM scope, asked CROSS JOIN inside CROSS JOIN LATERAL (
        SELECT namespace_id, place, times, length FROM langmem_stack.posting
        WHERE posting.namespace_id = inside.id AND posting.lexeme = asked.lexeme AND {passes_posting}
        OFFSET 0  -- a word at a time; with row-level security the planner would read all words of the namespace
    ) AS posting
), heard AS MATERIALIZED (
    SELECT namespace_id, word, place + step AS place, sum(times * (1 - abs(step) / 4.0::float8)) AS times
    FROM (SELECT *, generate_series(-3, 3) AS step FROM found WHERE place > 0) AS turn
    GROUP BY namespace_id, word, place + step
    UNION ALL
    SELECT namespace_id, word, place, times FROM found WHERE place < 0  -- in no session
), weight AS MATERIALIZED (
    SELECT word, ln(1 + (greatest(texts, heard_in) - heard_in + 0.5) / (heard_in + 0.5)) AS idf
    FROM scope, (SELECT word, count(*) AS heard_in FROM heard GROUP BY word) AS counted
), weighed AS MATERIALIZED (
    SELECT namespace_id, place, sum(idf * times * 2.2 / (times + 1.2)) AS bm25
    FROM heard JOIN weight USING (word)
    GROUP BY namespace_id, place
), lexical AS MATERIALIZED (
    SELECT * FROM weighed ORDER BY bm25 DESC, namespace_id, place LIMIT (SELECT candidates FROM scope)
),

-- fused --
-- The union of both legs. Each is scaled to its best, so a score does not depend on how many candidates
-- there are; both weigh the same, and that the question names the speaker a tenth of that. An item counts
-- by its best text.
pool AS (
    -- The BM25 of what is near, whatever its rank in that: by a window over both, because a join would be
    -- planned for a few rows and be quadratic in many.
    SELECT namespace_id, id, key, path, speaker, similarity, bm25
    FROM (
        SELECT namespace_id, id, key, path, speaker, similarity,
               max(bm25) OVER (PARTITION BY namespace_id, place) AS bm25
        FROM (
            SELECT item_text.namespace_id, place, item_text.id, key, path, speaker,
                   1 - distance AS similarity, NULL::float8 AS bm25
            FROM near
            JOIN langmem_stack.item_text ON item_text.namespace_id = near.namespace_id AND id = text_id
            UNION ALL
            SELECT namespace_id, place, NULL, NULL, NULL, NULL, NULL, bm25 FROM weighed
        ) AS met
    ) AS heard_too
    WHERE id IS NOT NULL
    UNION ALL
    SELECT item_text.namespace_id, item_text.id, key, path, speaker, 1 - ({column} <=> %(vector)s::{type}), bm25
    FROM lexical JOIN langmem_stack.item_text
         ON item_text.namespace_id = lexical.namespace_id AND item_text.place = lexical.place
    LEFT JOIN langmem_stack.embedding ON {shard} AND embedding.namespace_id = item_text.namespace_id
              AND embedding.text_id = item_text.id AND model = %(model)s
    WHERE {passes_text}
), known AS MATERIALIZED (
    SELECT namespace_id, key, path, max(bm25) AS bm25,
           max(similarity) AS similarity,
           coalesce(position(' ' || speaker || ' ' IN %(named)s) > 0, false) AS named
    FROM pool
    GROUP BY namespace_id, id, key, path, speaker
), legs AS (
    SELECT *, CASE WHEN bool_or(named) OVER () THEN 2.2 ELSE 2 END::float8 AS whole,
           coalesce(greatest(similarity, 0) / nullif(greatest(max(similarity) OVER (), 0), 0), 0) AS dense,
           coalesce(bm25 / nullif(max(bm25) OVER (), 0), 0) AS lexical,
           CASE WHEN named THEN 0.2 ELSE 0 END::float8 AS speaker
    FROM known
), best AS MATERIALIZED (
    SELECT DISTINCT ON (namespace_id, key) namespace_id, key, path, similarity, bm25,
           (dense + lexical + speaker) / whole AS score,
           dense / whole AS dense, lexical / whole AS lexical, speaker / whole AS speaker
    FROM legs
    ORDER BY namespace_id, key, score DESC
),

-- rest_fused --
coalesce(
    greatest(1 - ({column} <=> %(vector)s::{type}), 0)
    / (SELECT nullif(greatest(max(similarity), 0), 0) * max(whole) FROM legs), 0
)

-- rest_cosine --
1 - ({column} <=> %(vector)s::{type})

-- page --
-- The items that were asked for. Where the legs found fewer, the rest of the scope follows: by similarity,
-- then those without any text, which have no score.
page AS MATERIALIZED (
    SELECT namespace_id, key, path, score, similarity, bm25, dense, lexical, speaker,
           NULL::timestamptz AS updated_at
    FROM best
    UNION ALL
    SELECT item.namespace_id, item.key, path, score, similarity, NULL, coalesce(score, 0), 0, 0, updated_at
    FROM inside JOIN langmem_stack.item ON item.namespace_id = inside.id LEFT JOIN LATERAL (
        SELECT path, 1 - ({column} <=> %(vector)s::{type}) AS similarity, {rest_score} AS score
        FROM langmem_stack.item_text LEFT JOIN langmem_stack.embedding
             ON {shard} AND embedding.namespace_id = item_text.namespace_id
                AND text_id = item_text.id AND model = %(model)s
        WHERE item_text.namespace_id = item.namespace_id AND item_text.key = item.key
        ORDER BY score DESC NULLS LAST
        LIMIT 1
    ) AS rest ON true
    WHERE (SELECT count(*) FROM best) < %(limit)s::bigint + %(offset)s::bigint
      AND (item.expires_at IS NULL OR item.expires_at > now()) AND {filter}
      AND NOT EXISTS (SELECT FROM best WHERE best.namespace_id = item.namespace_id AND best.key = item.key)
    ORDER BY score DESC NULLS LAST, updated_at DESC, namespace_id, key
    LIMIT %(limit)s OFFSET %(offset)s
)
SELECT labels AS namespace, key, value, created_at, item.updated_at, ttl,
       score, path, similarity, bm25, dense, lexical, speaker,
       (SELECT current FROM langmem_stack.embedding_model WHERE embedding_model.id = %(model)s) AS current_model
FROM page JOIN langmem_stack.item USING (namespace_id, key) JOIN langmem_stack.namespace ON namespace.id = namespace_id
ORDER BY score DESC NULLS LAST, page.updated_at DESC, namespace_id, key;
