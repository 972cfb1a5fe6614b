-- Memories beside the search.

-- profile --
-- Who the user is: the same as long as these facts are, whatever is asked.
SELECT labels AS namespace, item.key, value, created_at, updated_at
FROM langmem_stack.namespace JOIN langmem_stack.item ON namespace_id = namespace.id
WHERE {scope} AND {condition} AND value ->> 'kind' = 'profile'
ORDER BY value -> 'importance' DESC NULLS LAST, value ->> 'at', item.key
LIMIT %(limit)s;

-- lineage --
-- A fact, what it followed, and what followed it: all that their links lead to, at any distance.
WITH RECURSIVE mine AS MATERIALIZED (
    SELECT labels, item.key, value, created_at, updated_at
    FROM langmem_stack.namespace JOIN langmem_stack.item ON namespace_id = namespace.id
    WHERE labels = ARRAY[%(user_id)s, 'facts'] OR labels = ARRAY[%(user_id)s, 'superseded'] AND value ? 'kind'
), links AS MATERIALIZED (
    SELECT mine.key AS later, older COLLATE "C" AS earlier
    FROM mine, jsonb_array_elements_text(
        CASE WHEN jsonb_typeof(value -> 'supersedes') = 'array' THEN value -> 'supersedes' ELSE '[]' END
    ) AS older
    UNION
    SELECT later.key, mine.key
    FROM mine JOIN mine AS later ON later.key = (mine.value ->> 'superseded_by') COLLATE "C"
), line AS (
    SELECT %(key)s::text COLLATE "C" AS key
    UNION
    SELECT CASE WHEN links.later = line.key THEN links.earlier ELSE links.later END
    FROM line JOIN links ON line.key IN (links.later, links.earlier)
)
SELECT labels AS namespace, mine.key, mine.value, created_at, updated_at FROM mine WHERE mine.key IN (SELECT key FROM line);
