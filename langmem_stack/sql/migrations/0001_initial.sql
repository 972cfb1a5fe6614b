-- Items of the store, the texts by which they are found, and the transcript.

CREATE EXTENSION IF NOT EXISTS vector;

-- Which models made the vectors. Vectors of different models can't be compared with each other.
CREATE TABLE langmem_stack.embedding_model (
    id         smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    dims       integer NOT NULL CHECK (dims > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A namespace is an array of labels, compared byte by byte: all namespaces below a prefix lie side by
-- side in the primary key's index, and no label can run into the next one.
CREATE TABLE langmem_stack.item (
    namespace  text[] COLLATE "C" NOT NULL CHECK (cardinality(namespace) > 0),
    key        text COLLATE "C" NOT NULL,
    value      jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (namespace, key)
);

-- A text by which an item is found, by its words and by its vector. An item has one for each indexed
-- path in its value. Without a vector (the model was out of reach) it is found by its words.
CREATE TABLE langmem_stack.item_text (
    namespace  text[] COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    path       text COLLATE "C" NOT NULL,
    text       text NOT NULL,
    words      tsvector NOT NULL,
    length     integer NOT NULL,  -- words in the text, for the length normalisation of BM25
    model      smallint REFERENCES langmem_stack.embedding_model,
    embedding  halfvec,
    PRIMARY KEY (namespace, key, path),
    FOREIGN KEY (namespace, key) REFERENCES langmem_stack.item ON DELETE CASCADE,
    CHECK ((model IS NULL) = (embedding IS NULL))
);
CREATE INDEX item_text_without_embedding ON langmem_stack.item_text (namespace) WHERE embedding IS NULL;

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
