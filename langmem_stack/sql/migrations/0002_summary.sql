-- The running conversation of a session: a summary of its messages up to a position, and those after it.
ALTER TABLE langmem_stack.session
    ADD COLUMN summary text NOT NULL DEFAULT '',
    ADD COLUMN covered bigint NOT NULL DEFAULT 0;  -- position of the last message that it covers
