-- Tables for LangChain's PGVectorStore: one for each name of documents, with the columns that it expects.

-- documents_model --
-- The model that the vectors of a table are of; no row where there is no such table.
SELECT obj_description(to_regclass(%(table)s::text), 'pg_class') AS model
WHERE to_regclass(%(table)s::text) IS NOT NULL;

-- create_documents --
CREATE TABLE {table} (
    langchain_id       text COLLATE "C" PRIMARY KEY,  -- its own default, uuid, takes no other ids
    content            text NOT NULL,
    embedding          vector({dims}) NOT NULL,
    langchain_metadata json
);
COMMENT ON TABLE {table} IS {model};
