-- The running conversation of a session. KEYS of all but the last three: messages, ids, summary.

-- shared --
local messages, ids, summary = KEYS[1], KEYS[2], KEYS[3]

-- All keys of a session have one time to live, in ms: from now on, or what is left of it. 0: they stay.
local function expire(ttl, sliding)
  if ttl > 0 and not sliding then
    local left = redis.call('PTTL', ids)
    if left > 0 then ttl = left end
  end
  for key = 1, 3 do
    if ttl > 0 then redis.call('PEXPIRE', KEYS[key], ttl) else redis.call('PERSIST', KEYS[key]) end
  end
  return ttl
end

-- A session remembers the newest thousand ids that left its list: appending one again, late, stays a no-op.
local function forget_old_ids()
  redis.call('ZREMRANGEBYRANK', ids, 0, -(redis.call('LLEN', messages) + 1001))
end

-- The registry outlives every session that it names.
local function register(registry, name, ttl)
  local left = redis.call('PTTL', registry)
  redis.call('SADD', registry, name)
  if ttl == 0 then
    redis.call('PERSIST', registry)
  elseif left ~= -1 and left < ttl then
    redis.call('PEXPIRE', registry, ttl)
  end
end

-- Appends what is new. From: where pairs of id and message begin in ARGV.
local function append(from, keep)
  local newest = redis.call('ZREVRANGE', ids, 0, 0, 'WITHSCORES')
  local position = tonumber(newest[2] or 0)
  local added = 0
  for i = from, #ARGV, 2 do
    if redis.call('ZADD', ids, 'NX', position + 1, ARGV[i]) == 1 then
      redis.call('RPUSH', messages, ARGV[i + 1])
      position = position + 1
      added = added + 1
    end
  end
  if keep > 0 then redis.call('LTRIM', messages, -keep, -1) end
  forget_old_ids()
  return added
end

-- append --
-- KEYS[4]: the registry, or none. ARGV: time to live, whether it slides, how many messages to keep or 0 for
-- all, the name in the registry, then id and message in turn.
-- These fail, before anything is written, if a key holds something foreign.
redis.call('LLEN', messages)
redis.call('ZCARD', ids)
redis.call('STRLEN', summary)
local added = append(5, tonumber(ARGV[3]))
local ttl = expire(tonumber(ARGV[1]), ARGV[2] == '1')
if KEYS[4] then register(KEYS[4], ARGV[4], ttl) end
return added

-- replace --
-- As append, into an empty session; ARGV has the summary behind the name.
redis.call('DEL', messages, ids, summary)
if ARGV[5] ~= '' then redis.call('SET', summary, ARGV[5]) end
append(6, tonumber(ARGV[3]))
local ttl = expire(tonumber(ARGV[1]), ARGV[2] == '1')
if KEYS[4] then register(KEYS[4], ARGV[4], ttl) end
return 1

-- read --
-- KEYS[4]: the outbox, or none. ARGV: how many of the newest messages to read, 0 for all.
local count = redis.call('LLEN', messages)
local limit = tonumber(ARGV[1])
if limit > 0 and limit < count then count = limit end
local lines, names, waiting = {}, {}, 0
if count > 0 then
  lines = redis.call('LRANGE', messages, -count, -1)
  names = redis.call('ZRANGE', ids, -count, -1)
end
if KEYS[4] then waiting = redis.call('LLEN', KEYS[4]) end
return {redis.call('GET', summary) or '', lines, names, waiting}

-- fold --
-- ARGV: time to live, whether it slides, the summary as it was read, the new one, then the ids of what it
-- covers. If any of that is not as it was read, nothing changes.
if (redis.call('GET', summary) or '') ~= ARGV[3] then return 0 end
local length = redis.call('LLEN', messages)
local count = #ARGV - 4
if count > length then return 0 end
local first = redis.call('ZCARD', ids) - length
local names = redis.call('ZRANGE', ids, first, first + count - 1)
for i = 1, count do
  if names[i] ~= ARGV[i + 4] then return 0 end
end
redis.call('LTRIM', messages, count, -1)
redis.call('SET', summary, ARGV[4])
forget_old_ids()
expire(tonumber(ARGV[1]), ARGV[2] == '1')
return 1

-- lock --
-- KEYS: the lock. ARGV: a token, ms. The lock of a dead holder expires by itself.
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])

-- unlock --
-- KEYS: the lock. ARGV: a token.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0

-- forget --
-- Deletes all that a user has here. KEYS: the registry, the outbox. ARGV: what the keys of sessions begin
-- with, and what they end with. They are not among KEYS, as only the registry knows them, but share its slot.
local deleted = 0
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  for i = 2, #ARGV do deleted = deleted + redis.call('DEL', ARGV[1] .. name .. ARGV[i]) end
end
return deleted + redis.call('DEL', KEYS[1], KEYS[2])
