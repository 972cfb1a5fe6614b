-- Items of the store, the texts by which they are found, and the transcript. Keys and constraints
-- contain the namespace, so that its items lie together.

CREATE EXTENSION IF NOT EXISTS vector;

-- Namespaces are arrays of labels, compared byte by byte: all below a prefix lie side by side in the
-- index, and no label can run into the next one. The row is locked while items of it are written.
CREATE TABLE langmem_stack.namespace (
    id      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    labels  text[] COLLATE "C" NOT NULL UNIQUE CHECK (cardinality(labels) > 0),
    shard   smallint NOT NULL,               -- the partition of its vectors, by the first label
    texts   bigint NOT NULL DEFAULT 0,       -- searchable texts in it, kept by a trigger
    length  bigint NOT NULL DEFAULT 0,       -- words in all of them
    expires boolean NOT NULL DEFAULT false   -- whether an item with a TTL was ever put into it
) WITH (fillfactor = 70);

CREATE TABLE langmem_stack.item (
    namespace_id integer NOT NULL REFERENCES langmem_stack.namespace ON DELETE CASCADE,
    key          text COLLATE "C" NOT NULL,
    value        jsonb NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    ttl          double precision CHECK (ttl > 0),  -- minutes after the last access
    expires_at   timestamptz,
    PRIMARY KEY (namespace_id, key),
    CHECK ((ttl IS NULL) = (expires_at IS NULL))
);
CREATE INDEX item_expires_at ON langmem_stack.item (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX item_expired ON langmem_stack.item (namespace_id, expires_at) WHERE expires_at IS NOT NULL;

-- A text by which an item is found. An item has one for each indexed path in its value.
CREATE SEQUENCE langmem_stack.text_id;
CREATE TABLE langmem_stack.item_text (
    namespace_id integer NOT NULL,
    id           bigint NOT NULL DEFAULT nextval('langmem_stack.text_id'),
    key          text COLLATE "C" NOT NULL,
    path         text COLLATE "C" NOT NULL,
    text         text NOT NULL,
    words        tsvector NOT NULL,
    length       integer NOT NULL,  -- words in the text, for the length normalisation of BM25
    place        bigint NOT NULL,   -- see langmem_stack.place
    speaker      text,              -- who said it, in lower case
    PRIMARY KEY (namespace_id, id),
    UNIQUE (namespace_id, key, path),
    FOREIGN KEY (namespace_id, key) REFERENCES langmem_stack.item ON DELETE CASCADE
);
CREATE INDEX item_text_place ON langmem_stack.item_text (namespace_id, place);

-- Where a text stands among others. The turns of a session have places next to each other, sessions
-- lie far apart, and so does each text that belongs to none: below zero, further than a turn's reach.
CREATE FUNCTION langmem_stack.place(value jsonb, text_id bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN jsonb_typeof(value -> 'session') IN ('string', 'number')
     AND CASE WHEN jsonb_typeof(value -> 'turn') = 'number'
              THEN (value ->> 'turn')::numeric BETWEEN 0 AND 2000000000 END
    THEN ((hashtextextended(value ->> 'session', 0) >> 32) & 2147483647) * 4294967296
         + floor((value ->> 'turn')::numeric)::bigint + 1024
    ELSE -16 * text_id
END;

-- The inverted index: which words stand where, how often. PostgreSQL's own text search finds texts, but
-- its indexes hold no counts; with these BM25 is a sum over index entries. Kept by triggers.
CREATE TABLE langmem_stack.posting (
    text_id      bigint NOT NULL,
    place        bigint NOT NULL,
    namespace_id integer NOT NULL,
    length       integer NOT NULL,
    times        smallint NOT NULL,
    lexeme       text COLLATE "C" NOT NULL,
    PRIMARY KEY (namespace_id, lexeme, text_id) INCLUDE (place, length, times)
);

CREATE FUNCTION langmem_stack.add_postings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM added) THEN RETURN NULL; END IF;
    INSERT INTO langmem_stack.posting (namespace_id, lexeme, text_id, place, length, times)
    SELECT namespace_id, lexeme, id, place, length, coalesce(cardinality(positions), 1)
    FROM added, unnest(words);
    UPDATE langmem_stack.namespace
    SET texts = namespace.texts + sums.texts, length = namespace.length + sums.length
    FROM (SELECT namespace_id, count(*) AS texts, sum(length) AS length FROM added GROUP BY 1) AS sums
    WHERE namespace.id = sums.namespace_id;
    RETURN NULL;
END $$;

CREATE FUNCTION langmem_stack.remove_postings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM removed) THEN RETURN NULL; END IF;
    DELETE FROM langmem_stack.posting
    USING (SELECT namespace_id, lexeme, id FROM removed, unnest(words)) AS gone
    WHERE posting.namespace_id = gone.namespace_id AND posting.lexeme = gone.lexeme AND posting.text_id = gone.id;
    UPDATE langmem_stack.namespace
    SET texts = namespace.texts - sums.texts, length = namespace.length - sums.length
    FROM (SELECT namespace_id, count(*) AS texts, sum(length) AS length FROM removed GROUP BY 1) AS sums
    WHERE namespace.id = sums.namespace_id;
    RETURN NULL;
END $$;

CREATE TRIGGER text_added AFTER INSERT ON langmem_stack.item_text
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION langmem_stack.add_postings();
CREATE TRIGGER text_removed AFTER DELETE ON langmem_stack.item_text
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION langmem_stack.remove_postings();
CREATE TRIGGER text_changed_from AFTER UPDATE ON langmem_stack.item_text
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION langmem_stack.remove_postings();
CREATE TRIGGER text_changed_to AFTER UPDATE ON langmem_stack.item_text
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION langmem_stack.add_postings();

-- Which models made the vectors. Vectors of different models can't be compared with each other.
CREATE TABLE langmem_stack.embedding_model (
    id          smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL,
    dims        integer NOT NULL CHECK (dims > 0),
    vector_type text NOT NULL CHECK (vector_type IN ('halfvec', 'vector')),
    current     boolean NOT NULL DEFAULT false,  -- the one that searches go by
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, dims, vector_type)
);
CREATE UNIQUE INDEX embedding_model_current ON langmem_stack.embedding_model (current) WHERE current;

-- Vectors, in a table of their own: scanning them touches nothing else, and while a model is replaced
-- a text has two. A text without one (the model was out of reach) is found by its words. In partitions,
-- because an HNSW index that is filtered by namespace finds the less the smaller the namespace's share.
CREATE TABLE langmem_stack.embedding (
    shard        smallint NOT NULL,
    text_id      bigint NOT NULL,
    namespace_id integer NOT NULL,
    model        smallint NOT NULL REFERENCES langmem_stack.embedding_model,
    half         halfvec,  -- one of the two, as the model's vector_type says
    single       vector,
    PRIMARY KEY (namespace_id, text_id, model, shard),
    FOREIGN KEY (namespace_id, text_id) REFERENCES langmem_stack.item_text ON DELETE CASCADE,
    CHECK (num_nonnulls(half, single) = 1)
) PARTITION BY LIST (shard);
-- In the row: vectors that are moved out of it cost an index lookup each.
ALTER TABLE langmem_stack.embedding ALTER half SET STORAGE MAIN, ALTER single SET STORAGE MAIN;
DO $$
BEGIN
    FOR shard IN 0..15 LOOP
        EXECUTE format(
            'CREATE TABLE langmem_stack.embedding_%s PARTITION OF langmem_stack.embedding FOR VALUES IN (%s)',
            shard, shard
        );
    END LOOP;
END $$;

-- A conversation of a user. Its row is locked while messages are appended, which puts writers in order.
CREATE TABLE langmem_stack.session (
    user_id       text COLLATE "C" NOT NULL,
    session_id    text COLLATE "C" NOT NULL,
    last_position bigint NOT NULL DEFAULT 0,
    active_at     timestamptz NOT NULL DEFAULT '-infinity',  -- when its newest message was said
    PRIMARY KEY (user_id, session_id)
);

-- The transcript: every message, exactly once, in order, never changed. Type json, not jsonb, because
-- it keeps each character as it was written, escaped NULs and lone surrogates too.
CREATE TABLE langmem_stack.message (
    user_id     text COLLATE "C" NOT NULL,
    session_id  text COLLATE "C" NOT NULL,
    position    bigint NOT NULL,
    message_id  text COLLATE "C" NOT NULL,
    message     json NOT NULL,
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, session_id, position),
    UNIQUE (user_id, session_id, message_id),
    FOREIGN KEY (user_id, session_id) REFERENCES langmem_stack.session ON DELETE CASCADE
);
