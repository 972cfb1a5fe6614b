"""The only code that opens a socket or calls an embedding model.

An operation is written once, as a generator that yields requests (`steps`); `drivers` performs
them, either in plain or in async code, on the connections that `postgres` and `redis` hold.
"""
