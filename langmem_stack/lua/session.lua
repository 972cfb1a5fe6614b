-- The running conversation of a session. Its list has the newest message first: Redis before version 7 looks
-- for elements from the head, and most reads want the newest. KEYS of all but the last three: messages, ids, summary, and for a
-- user's session the registry and the outbox.

-- shared --
local messages, ids, summary, registry, outbox = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

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
local function register(name, ttl)
  if not registry then return end
  local left = redis.call('PTTL', registry)
  redis.call('SADD', registry, name)
  if ttl == 0 then
    redis.call('PERSIST', registry)
  elseif left ~= -1 and left < ttl then
    redis.call('PEXPIRE', registry, ttl)
  end
end

local function count_waiting()
  if outbox then return redis.call('LLEN', outbox) end
  return 0
end

-- Where Redis has evicted the ids of messages, these get others, so that they can be summarised.
local function restore_ids()
  local missing = redis.call('LLEN', messages) - redis.call('ZCARD', ids)
  if missing <= 0 then return end
  local oldest = tonumber(redis.call('ZRANGE', ids, 0, 0, 'WITHSCORES')[2] or 1)
  for i = 1, missing do redis.call('ZADD', ids, oldest - i, 'evicted-' .. oldest - i) end
end

-- Appends what is new of the pairs of id and message, which begin with the sixth of ARGV.
local function append(keep)
  restore_ids()
  local newest = redis.call('ZREVRANGE', ids, 0, 0, 'WITHSCORES')
  local position = tonumber(newest[2] or 0)
  local added = 0
  for i = 6, #ARGV, 2 do
    if redis.call('ZADD', ids, 'NX', position + 1, ARGV[i]) == 1 then
      redis.call('LPUSH', messages, ARGV[i + 1])
      position = position + 1
      added = added + 1
    end
  end
  if keep > 0 then redis.call('LTRIM', messages, 0, keep - 1) end
  forget_old_ids()
  return added
end

-- append --
-- ARGV: time to live, whether it slides, how many messages to keep or 0 for all, the name in the registry, '',
-- then id and message in turn. Returns how many messages wait in the outbox.
-- These fail, before anything is written, if a key holds something foreign.
redis.call('LLEN', messages)
redis.call('ZCARD', ids)
redis.call('STRLEN', summary)
if registry then redis.call('SCARD', registry) end
local waiting = count_waiting()
append(tonumber(ARGV[3]))
register(ARGV[4], expire(tonumber(ARGV[1]), ARGV[2] == '1'))
return waiting

-- replace --
-- As append, into an empty session; behind the name ARGV has the summary.
redis.call('DEL', messages, ids, summary)
if ARGV[5] ~= '' then redis.call('SET', summary, ARGV[5]) end
append(tonumber(ARGV[3]))
register(ARGV[4], expire(tonumber(ARGV[1]), ARGV[2] == '1'))
return 1

-- clear --
-- ARGV: the name in the registry.
if registry then redis.call('SREM', registry, ARGV[1]) end
return redis.call('DEL', messages, ids, summary)

-- read --
-- ARGV: how many of the newest messages to read, 0 for all. Returns them, and their ids, the newest first.
local count = redis.call('LLEN', messages)
local limit = tonumber(ARGV[1])
if limit > 0 and limit < count then count = limit end
local lines, names = {}, {}
if count > 0 then
  lines = redis.call('LRANGE', messages, 0, count - 1)
  names = redis.call('ZREVRANGE', ids, 0, count - 1)
end
return {redis.call('GET', summary) or '', lines, names, count_waiting()}

-- fold --
-- ARGV: time to live, whether it slides, the name in the registry, the summary as it was read, the new one,
-- then the ids of what it covers. If any of that is not as it was read, nothing changes.
if (redis.call('GET', summary) or '') ~= ARGV[4] then return 0 end
local length = redis.call('LLEN', messages)
local first = redis.call('ZCARD', ids) - length
local count = #ARGV - 5
if count > length or first < 0 then return 0 end
local names = redis.call('ZRANGE', ids, first, first + count - 1)
for i = 1, count do
  if names[i] ~= ARGV[i + 5] then return 0 end
end
redis.call('LTRIM', messages, 0, -count - 1)
redis.call('SET', summary, ARGV[5])
forget_old_ids()
register(ARGV[3], expire(tonumber(ARGV[1]), ARGV[2] == '1'))
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
-- with, their four ends, and names of sessions besides those in the registry. The keys of sessions are not
-- among KEYS, as the registry knows them; they share its slot.
local deleted = 0
local function forget(name)
  for i = 2, 5 do deleted = deleted + redis.call('DEL', ARGV[1] .. name .. ARGV[i]) end
end
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do forget(name) end
for i = 6, #ARGV do forget(ARGV[i]) end
return deleted + redis.call('DEL', KEYS[1], KEYS[2])
