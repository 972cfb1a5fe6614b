-- The checkpoints of a thread. KEYS, all in the thread's slot:
--   order        sorted set: names of checkpoints, all scores 0, so in the order of namespace and id
--   checkpoints  hash: what each is
--   values       hash: values of channels, which checkpoints share, and whatever is large
--   writes       hash: pending writes
--   pending      hash: for each checkpoint, the names of its writes
--   known        hash: what the index knows of the thread, until when
-- ARGV begins with: the time to live in ms, 0 for none, -1 to leave it; the thread's name in the index; and what
-- the keys of the index begin with, or '' in a Cluster, where they are in other slots.

-- shared --
local order, checkpoints, values = KEYS[1], KEYS[2], KEYS[3]
local writes, pending, known = KEYS[4], KEYS[5], KEYS[6]
local ttl, thread, index = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local NEVER = 1e15  -- ms; no clock comes there
local OWED = ''  -- stands for all entries that are
local VALUE_NAME, CHANNEL_NAME, WRITE_NAME = 16, 8, 20  -- bytes, as Python makes them
local NO_VALUE = string.rep('\0', VALUE_NAME)

-- Redis evicts whole keys. Of these pairs a thread has both or neither.
local function check_pairs()
  for _, pair in ipairs({{order, checkpoints}, {pending, writes}}) do
    if redis.call('EXISTS', pair[1], pair[2]) == 1 then
      error('EVICTED ' .. (redis.call('EXISTS', pair[1]) == 0 and pair[1] or pair[2]))
    end
  end
end

-- This fails, before anything is written, if a key holds something foreign.
local function check_types()
  redis.call('ZCARD', order)
  for key = 2, 6 do redis.call('HLEN', KEYS[key]) end
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The index names a thread for twice its time to live, and anew when half of that is over: so it never forgets
-- one that lives, and forgets the others by itself. An end tells an entry of a thread from a later one.
local function until_when(time)
  return string.format('%.0f', ttl == 0 and NEVER + time or time + 2 * ttl)
end

local function enter(key, till, time)
  redis.call('ZADD', key, till, thread)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. string.format('%.0f', time))
  local last = tonumber(redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2])
  if last >= NEVER then redis.call('PERSIST', key) else redis.call('PEXPIREAT', key, string.format('%.0f', last)) end
  return string.format('%.0f', redis.call('ZSCORE', key, thread))
end

-- What the thread knows of an entry in the index: until when it is there; 0 while it is only owed; less than 0
-- while it is to be removed. The last two are there only where the index is in other slots.
local function known_of(entry) return tonumber(redis.call('HGET', known, entry) or 0) end

-- Of two calls that made an entry at once the later one's end counts, in whichever order they tell it; but one that
-- is far too late, as the thread has been given a shorter time to live, does not.
local function is_far(till, wanted) return ttl > 0 and till > wanted + 2 * ttl end

local function note(entry, till)
  local before, new = known_of(entry), tonumber(till)
  if before < new or is_far(before, new) then redis.call('HSET', known, entry, till) end
end

local function expire()
  local till = ttl > 0 and string.format('%.0f', now() + ttl)  -- one for all: until Redis 7 a script's clock goes on
  for key = 1, 6 do
    if till then redis.call('PEXPIREAT', KEYS[key], till) else redis.call('PERSIST', KEYS[key]) end
  end
end

-- The entries that have to be made, or made anew, for the thread to live on. With that among all threads all are
-- made anew: so none ends before it does, and it alone says when.
local function due_of(run)
  local needed = ttl == 0 and NEVER or now() + ttl
  local main = known_of('threads')
  local due, all = {}, main < needed or is_far(main, needed)
  if all then due[1] = 'threads' end
  if run ~= '' and (all or known_of(run) < needed) then due[#due + 1] = run end
  if all or index == '' and redis.call('HEXISTS', known, OWED) == 1 then
    for _, entry in ipairs(redis.call('HKEYS', known)) do
      local till = known_of(entry)
      local is_other = entry ~= OWED and entry ~= 'threads' and entry ~= run
      if is_other and till >= 0 and (all or till < needed) then due[#due + 1] = entry end
    end
  end
  return due
end

-- Lets the whole thread live on, and be found by a run. Returns the entries owed to an index in other slots.
local function keep(run)
  local due = due_of(run)
  local is_new = #due > 0
  if #due > 0 and index ~= '' then
    local time = now()
    for _, entry in ipairs(due) do note(entry, enter(index .. entry, until_when(time), time)) end
    due = {}
  end
  for _, entry in ipairs(due) do
    if known_of(entry) <= 0 then redis.call('HSET', known, entry, 0, OWED, 1) end
  end
  if ttl > 0 or is_new or redis.call('PTTL', known) ~= -1 then expire() end  -- mostly nothing expires
  return due
end

-- As keep, for a thread that was read, if it is there.
local function keep_read()
  if ttl < 0 or redis.call('EXISTS', order) == 0 then return {} end
  return keep('')
end

local function names_in(joined, length)
  local names = {}
  for at = 1, #joined, length do names[#names + 1] = string.sub(joined, at, at + length - 1) end
  return names
end

-- What a checkpoint is begins, as Python packed it, with these, each behind its length: the name of its parent,
-- the names of its values, the channels that are rebuilt from its ancestors' writes, its run's entry in the
-- index, the root checkpoint that called it.
local function unpacked(name)
  local packed = redis.call('HGET', checkpoints, name)
  if not packed then return nil end
  local parent, joined, deltas, run, root = struct.unpack('>I4c0I4c0I4c0I4c0I4c0', packed)
  return {packed = packed, parent = parent, values = names_in(joined, VALUE_NAME), deltas = deltas, run = run, root = root}
end

local function channel_of(value) return string.sub(value, 1, CHANNEL_NAME) end

local function namespace_of(name) return string.match(name, '^[^/]*') end

-- Iterates over a checkpoint and its ancestors.
local function lineage(name)
  local seen = {}
  return function()
    local at = name
    local record = at and not seen[at] and unpacked(at)
    if not record then return nil end
    seen[at], name = true, record.parent
    return at, record
  end
end

-- A checkpoint, and its ancestors back to those that have the values from which its channels are rebuilt.
local function rebuilt_from(name)
  local line, valued, wanted, enough = {}, {}, {}, 1
  for at, record in lineage(name) do
    line[#line + 1] = at
    for _, value in ipairs(record.values) do
      if wanted[channel_of(value)] then enough = #line end
      wanted[channel_of(value)] = nil
      valued[channel_of(value)] = true
    end
    for _, channel in ipairs(names_in(record.deltas, CHANNEL_NAME)) do
      if not valued[channel] then wanted[channel] = true end
    end
  end
  if next(wanted) then enough = #line end
  for at = #line, enough + 1, -1 do line[at] = nil end
  return line
end

-- A name that ends where an id would begin is that of the newest checkpoint of the namespace.
local function resolved(name)
  if string.sub(name, -1) ~= '/' then return name end
  local after = '(' .. namespace_of(name) .. '0'  -- which is what comes after '/'
  return redis.call('ZREVRANGEBYLEX', order, after, '[' .. name, 'LIMIT', 0, 1)[1]
end

local function writes_to(name)
  return names_in(redis.call('HGET', pending, name) or '', WRITE_NAME)
end

-- A value, or a write behind its channel, begins with the name of the large thing in it, which is kept once among
-- the values; else that is empty. This returns it whole, or '' if Redis has lost a part.
local function with_large(packed, reference)
  if not packed or reference == '' then return packed or '' end
  local large = redis.call('HGET', values, reference)
  return large and packed .. large or ''
end

local function value_of(name)
  local packed = name ~= NO_VALUE and redis.call('HGET', values, name)
  return packed and with_large(packed, (struct.unpack('>I4c0', packed))) or ''
end

local function write_of(name)
  local packed = redis.call('HGET', writes, name)
  if not packed then return '', '' end
  local channel, reference = struct.unpack('>I4c0I4c0', packed)
  return with_large(packed, reference), channel
end

-- A checkpoint's name, what it is, whether its parent is there, its values and its writes: each behind its length,
-- as one string, which clients read faster than a list.
local function whole(name)
  local record = name and unpacked(name)
  if not record then return false end
  local parts = {name, record.packed, tostring(redis.call('HEXISTS', checkpoints, record.parent))}
  for _, value in ipairs(record.values) do parts[#parts + 1] = value_of(value) end
  for _, write in ipairs(writes_to(name)) do parts[#parts + 1] = (write_of(write)) end
  for at, part in ipairs(parts) do parts[at] = struct.pack('>I4', #part) .. part end
  return table.concat(parts)
end

-- The names of all that a checkpoint or a write refers to.
local function needed_values()
  local needed = {}
  for _, name in ipairs(redis.call('ZRANGE', order, 0, -1)) do
    for _, value in ipairs(unpacked(name).values) do
      local packed = redis.call('HGET', values, value)
      needed[value] = true
      if packed then needed[(struct.unpack('>I4c0', packed))] = true end
    end
  end
  for _, packed in ipairs(redis.call('HVALS', writes)) do
    local _, reference = struct.unpack('>I4c0I4c0', packed)
    needed[reference] = true
  end
  return needed
end

-- Removes the entries of runs of which nothing is left, or of all, if nothing is left of the thread. Where the index
-- is in other slots, returns them instead, each with its end.
local function forget_entries()
  local used, ends = {}, {}
  for _, name in ipairs(redis.call('ZRANGE', order, 0, -1)) do used[unpacked(name).run] = true end
  local is_empty = redis.call('EXISTS', order, pending) == 0
  if is_empty then redis.call('UNLINK', checkpoints, values, writes) end
  used.threads, used[OWED] = not is_empty, not is_empty
  for _, entry in ipairs(redis.call('HKEYS', known)) do
    local till = string.format('%.0f', math.abs(known_of(entry)))
    if not used[entry] and index == '' and till ~= '0' and entry ~= OWED then
      redis.call('HSET', known, entry, '-' .. till)
      ends[#ends + 1] = entry
      ends[#ends + 1] = till
    elseif not used[entry] then
      if index ~= '' then redis.call('ZREM', index .. entry, thread) end
      redis.call('HDEL', known, entry)
    end
  end
  return ends
end

-- Makes the nearest ancestor that stays the parent of each checkpoint that stays.
local function link_over(names)
  local parents = {}
  for _, name in ipairs(names) do parents[name] = unpacked(name).parent end
  for _, name in ipairs(redis.call('ZRANGE', order, 0, -1)) do
    local record = not parents[name] and unpacked(name)
    local parent = record and record.parent
    local seen = {}
    while parents[parent] and not seen[parent] do
      seen[parent], parent = true, parents[parent]
    end
    if parent == name then parent = '' end  -- where somebody has made a circle
    if record and parent ~= record.parent then
      local rest = string.sub(record.packed, 5 + #record.parent)
      redis.call('HSET', checkpoints, name, struct.pack('>I4', #parent) .. parent .. rest)
    end
  end
end

-- Deletes checkpoints, their writes, and the values that no other checkpoint has. Returns as forget_entries.
local function drop(names)
  link_over(names)
  for _, name in ipairs(names) do
    redis.call('HDEL', checkpoints, name)
    redis.call('ZREM', order, name)
    for _, write in ipairs(writes_to(name)) do redis.call('HDEL', writes, write) end
    redis.call('HDEL', pending, name)
  end
  local needed = needed_values()
  for _, value in ipairs(redis.call('HKEYS', values)) do
    if not needed[value] then redis.call('HDEL', values, value) end
  end
  return forget_entries()
end

-- put --
-- ARGV: name, what the checkpoint is, its run's entry or '', then names of values and values in turn. Returns
-- whether it was stored, which it is not if a value is neither there nor passed; and entries.
check_types()
check_pairs()
local sent = {}
for at = 7, #ARGV, 2 do sent[ARGV[at]] = true end
local _, needed = struct.unpack('>I4c0I4c0', ARGV[5])
for _, value in ipairs(names_in(needed, VALUE_NAME)) do
  if value ~= NO_VALUE and not sent[value] and redis.call('HEXISTS', values, value) == 0 then return {0, {}} end
end
redis.call('ZADD', order, 0, ARGV[4])
redis.call('HSET', checkpoints, ARGV[4], ARGV[5])
for at = 7, #ARGV, 2 do redis.call('HSET', values, ARGV[at], ARGV[at + 1]) end
return {1, keep(ARGV[6])}

-- put_writes --
-- ARGV: the checkpoint's name, then for each write its name, whether it replaces one of this name, what it is, and
-- the name of the large thing in it, with that, or ''. Returns entries.
check_types()
check_pairs()
local known_writes = {redis.call('HGET', pending, ARGV[4]) or ''}
for at = 5, #ARGV, 5 do
  local is_new = redis.call('HEXISTS', writes, ARGV[at]) == 0
  if is_new then known_writes[#known_writes + 1] = ARGV[at] end
  if is_new or ARGV[at + 1] == '1' then
    redis.call('HSET', writes, ARGV[at], ARGV[at + 2])
    if ARGV[at + 3] ~= '' then redis.call('HSETNX', values, ARGV[at + 3], ARGV[at + 4]) end
  end
end
redis.call('HSET', pending, ARGV[4], table.concat(known_writes))
return keep('')

-- get --
-- ARGV: names of checkpoints. Returns each whole, or nothing where there is none; and entries.
check_pairs()
local found = {}
for at = 4, #ARGV do found[at - 3] = whole(resolved(ARGV[at])) end
return {found, keep_read()}

-- list --
-- ARGV: the highest and the lowest name, as ZREVRANGEBYLEX takes them, how many names at most, and how many
-- checkpoints to return whole. Returns the names, the newest of a namespace first, checkpoints, and entries.
check_pairs()
local names = redis.call('ZREVRANGEBYLEX', order, ARGV[4], ARGV[5], 'LIMIT', 0, ARGV[6])
local found = {}
for at = 1, math.min(#names, tonumber(ARGV[7])) do found[at] = whole(names[at]) end
return {names, found, keep_read()}

-- records --
-- ARGV: names of checkpoints. Returns what each is, as it was packed.
check_pairs()
local found = {}
for at = 4, #ARGV do found[at - 3] = redis.call('HGET', checkpoints, ARGV[at]) end
return found

-- history --
-- ARGV: the name of a checkpoint, then channels. Returns, for each ancestor, the nearest first, its writes to the
-- channels whose value no nearer one has, and the channels whose value it has, with it.
check_pairs()
local wanted, left = {}, #ARGV - 4
for at = 5, #ARGV do wanted[ARGV[at]] = true end
local target = resolved(ARGV[4])
local found = {}
for name, record in lineage(target) do
  if left == 0 then break end
  local waiting, seeds = {}, {}
  for _, write in ipairs(name ~= target and writes_to(name) or {}) do
    local packed, channel = write_of(write)
    if wanted[channel] then waiting[#waiting + 1] = packed end
  end
  for _, value in ipairs(name ~= target and record.values or {}) do
    if wanted[channel_of(value)] then
      seeds[#seeds + 1] = channel_of(value)
      seeds[#seeds + 1] = value_of(value)
      wanted[channel_of(value)] = nil
      left = left - 1
    end
  end
  found[#found + 1] = {waiting, seeds}
end
return found

-- delete --
-- Deletes the thread. Returns as drop.
redis.call('UNLINK', order, checkpoints, values, writes, pending)
return forget_entries()

-- delete_runs --
-- ARGV: entries of runs. Deletes their checkpoints. Returns as drop.
check_pairs()
local wanted, names = {}, {}
for at = 4, #ARGV do wanted[ARGV[at]] = true end
for _, name in ipairs(redis.call('ZRANGE', order, 0, -1)) do
  if wanted[unpacked(name).run] then names[#names + 1] = name end
end
return drop(names)

-- prune --
-- Keeps the newest checkpoint of each namespace, with the ancestors that its channels are rebuilt from. The
-- namespace of a subgraph's call goes with the root checkpoint that called it; that of a subgraph with a memory
-- of its own, which has no task's id in its name, stays. Returns as drop.
check_pairs()
local names = redis.call('ZRANGE', order, 0, -1)
local newest, kept, dropped = {}, {}, {}
for at, name in ipairs(names) do
  local namespace = namespace_of(name)
  if at == #names or namespace_of(names[at + 1]) ~= namespace then
    table.insert(newest, namespace == '' and 1 or #newest + 1, name)  -- the root graph's before those it called
  end
end
for _, name in ipairs(newest) do
  local root = unpacked(name).root
  -- A call may be here before its root checkpoint is.
  local is_over = string.find(namespace_of(name), '%3A', 1, true) and not kept[root]
    and redis.call('HEXISTS', checkpoints, root) == 1
  if not is_over then
    for _, needed in ipairs(rebuilt_from(name)) do kept[needed] = true end
  end
end
for _, name in ipairs(names) do
  if not kept[name] then dropped[#dropped + 1] = name end
end
return drop(dropped)

-- dump --
-- Returns all but what the index knows, as RESTORE takes it.
check_pairs()
local dumps = {}
for key = 1, 5 do dumps[key] = redis.call('DUMP', KEYS[key]) or '' end
return dumps

-- restore --
-- ARGV: five dumps. Returns whether the thread was empty, as it has to be, and entries.
if redis.call('EXISTS', order, pending) > 0 then return {0, {}} end
for key = 1, 5 do
  if ARGV[key + 3] ~= '' then redis.call('RESTORE', KEYS[key], 0, ARGV[key + 3], 'REPLACE') end
end
for _, name in ipairs(redis.call('ZRANGE', order, 0, -1)) do
  local run = unpacked(name).run
  if run ~= '' then redis.call('HSET', known, run, 0) end
end
return {1, keep('')}

-- note --
-- ARGV: entries that the index has, each with its end. Returns whether the thread is still there.
if redis.call('EXISTS', order, pending) == 0 then return 0 end
for at = 4, #ARGV, 2 do note(ARGV[at], ARGV[at + 1]) end
redis.call('HDEL', known, OWED)
for _, entry in ipairs(redis.call('HKEYS', known)) do
  if known_of(entry) == 0 then redis.call('HSET', known, OWED, 1) end
end
return 1

-- unnote --
-- ARGV: entries that the index has no longer, each with the end that it had.
for at = 4, #ARGV, 2 do
  if redis.call('HGET', known, ARGV[at]) == '-' .. ARGV[at + 1] then redis.call('HDEL', known, ARGV[at]) end
end
return 1

-- enter --
-- KEYS: keys of the index. Returns for each until when it names the thread.
local time, ends = now(), {}
for at, key in ipairs(KEYS) do ends[at] = enter(key, until_when(time), time) end
return ends

-- leave --
-- KEYS: keys of the index. ARGV: for each the end that its entry of the thread has; another one is of a thread
-- that began anew.
local left = 0
for at, key in ipairs(KEYS) do
  local till = redis.call('ZSCORE', key, thread)
  if till and tonumber(till) == tonumber(ARGV[at + 3]) then left = left + redis.call('ZREM', key, thread) end
end
return left
