-- What is formed from the transcript: how far each session is, what each batch gave, and what was done
-- to memories later. The memories themselves are items of the store.
ALTER TABLE langmem_stack.session
    ADD COLUMN formed      bigint NOT NULL DEFAULT 0,    -- position of the last message that has been formed
    ADD COLUMN unformed    bigint NOT NULL DEFAULT 0,    -- characters that were said after it
    ADD COLUMN queued      smallint NOT NULL DEFAULT 0,  -- the job that waits: 0 none, 1 when it is idle,
                                                         -- 2 as there is enough, 3 in any case
    ADD COLUMN appended_at timestamptz NOT NULL DEFAULT now();  -- when its newest message was recorded

-- A batch of messages that became memories, by one call of a model.
CREATE TABLE langmem_stack.formed (
    user_id        text COLLATE "C" NOT NULL,
    session_id     text COLLATE "C" NOT NULL,
    first_position bigint NOT NULL,
    last_position  bigint NOT NULL,
    formed_at      timestamptz NOT NULL DEFAULT now(),
    episode        text COLLATE "C",          -- its key
    facts          integer NOT NULL,          -- that were new or changed one
    supported      integer NOT NULL,          -- that were known and got one more support
    dropped        integer NOT NULL,          -- that named no message of the batch as support
    calls          integer NOT NULL,
    tokens         bigint NOT NULL,
    PRIMARY KEY (user_id, session_id, last_position),
    FOREIGN KEY (user_id, session_id) REFERENCES langmem_stack.session ON DELETE CASCADE
);

-- What happened to memories after they were formed: keys and reasons, never content.
CREATE TABLE langmem_stack.audit (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    user_id   text COLLATE "C" NOT NULL,  -- after an erasure of the user: a digest of it
    action    text NOT NULL,              -- such as superseded, rolled_up, restored, erased
    subject   text COLLATE "C" NOT NULL,  -- key of the memory, or what was erased
    successor text COLLATE "C",
    reason    text NOT NULL
);
CREATE INDEX audit_user ON langmem_stack.audit (user_id, id);

-- What the models of background work were asked for, by day (UTC): the budget goes by it.
CREATE TABLE langmem_stack.model_usage (
    day    date PRIMARY KEY,
    calls  bigint NOT NULL,
    tokens bigint NOT NULL
);

-- When workers last began what one of them does now and then.
CREATE TABLE langmem_stack.round (
    name     text PRIMARY KEY,
    begun_at timestamptz NOT NULL
);

-- A moment in ISO 8601 in an item's value, which may hold anything; null if it is none. Without a zone it is in
-- UTC. Not parallel safe: before PostgreSQL 17 a function that catches errors can't be part of a parallel plan.
CREATE FUNCTION langmem_stack.moment(written text) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN CASE WHEN written ~ '[T ].*[Zz+-]' THEN written::timestamptz ELSE written::timestamp AT TIME ZONE 'UTC' END;
EXCEPTION WHEN others THEN
    RETURN NULL;
END $$;

-- For statements that must find what was read before: the transaction fails as one that lost a race.
CREATE FUNCTION langmem_stack.require(holds boolean, otherwise text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF holds IS NOT TRUE THEN
        RAISE EXCEPTION '%', otherwise USING ERRCODE = 'serialization_failure';
    END IF;
END $$;
