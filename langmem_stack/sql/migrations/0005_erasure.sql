-- What is to be erased, written down before anything is, so that whoever comes next can complete it; and,
-- once that is done, that it was. Of what was erased nothing stays but counts, a digest of whose it was, and
-- the keys of facts that must not be formed again, which are digests themselves.
CREATE TABLE langmem_stack.erasure (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_digest text NOT NULL,               -- SHA-256 of the user's id
    kind        text NOT NULL CHECK (kind IN ('user', 'session', 'memory')),
    user_id     text COLLATE "C",            -- this and the next three until it is done
    session_id  text COLLATE "C",
    memory      text COLLATE "C",            -- its key in the store
    memory_kind text,                        -- turn, episode or fact
    sessions    text[] COLLATE "C" NOT NULL DEFAULT '{}',  -- gone from here, to be erased from Redis
    fact        text COLLATE "C",            -- key of a fact that is not to be formed again
    started_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    counts      jsonb NOT NULL DEFAULT '{}',
    CHECK ((user_id IS NULL) = (finished_at IS NOT NULL))
);
CREATE INDEX erasure_user ON langmem_stack.erasure (user_digest);
CREATE INDEX erasure_unfinished ON langmem_stack.erasure (id) WHERE finished_at IS NULL;

-- The planner's statistics hold samples of what is in a column, and go on holding them after it was
-- deleted. No plan here depends on those of texts and vectors: none are kept of them. Setting the type again
-- drops those that were gathered.
ALTER TABLE langmem_stack.item
    ALTER value TYPE jsonb, ALTER value SET STATISTICS 0;
ALTER TABLE langmem_stack.item_text
    ALTER text TYPE text, ALTER text SET STATISTICS 0,
    ALTER words TYPE tsvector, ALTER words SET STATISTICS 0,
    ALTER speaker TYPE text, ALTER speaker SET STATISTICS 0;
ALTER TABLE langmem_stack.session
    ALTER summary TYPE text, ALTER summary SET STATISTICS 0;
ALTER TABLE langmem_stack.embedding
    ALTER half SET STATISTICS 0, ALTER single SET STATISTICS 0;
