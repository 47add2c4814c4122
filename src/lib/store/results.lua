-- Results of tools that are kept for later calls, and who is making a call that others wait for.
--
--   res:<tool>             zset    name -> milliseconds at which the entry is gone
--   res:<tool>:<name>      string  'v<sealed result>', or 'n': what the call gave may not be kept
--   res:<tool>:by          zset    name -> milliseconds at which the lease of its call is gone
--   res:<tool>:<name>:by   string  owner of the call that is being made
--
-- A: op = 'look' | 'renew' | 'keep' | 'free' | 'drop', tool, name?, owner?, lease_ms?, ttl_ms?, entry?, most
-- look  -> { 'hit', entry } | { 'lead' } | { 'wait' }
-- renew -> 1 when the owner still has the lease, else 0
-- keep  -> 1 when the entry was kept, else 0
-- free  -> 0
-- drop  -> how many entries there were

local A = cjson.decode(ARGV[1])
local index = KEYS[1] .. ':res:' .. A.tool
local leases = index .. ':by'

local function int(n)
  return string.format('%.0f', n)
end

if A.op == 'drop' then
  local dropped = 0
  for _, name in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    dropped = dropped + redis.call('DEL', index .. ':' .. name)
  end
  -- Who is making a call now may answer with what it gives, and keeps nothing.
  for _, name in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
    redis.call('DEL', index .. ':' .. name .. ':by')
  end
  redis.call('DEL', index, leases)
  return dropped
end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local entry = index .. ':' .. A.name
local lease = entry .. ':by'

-- Notes in a list of names until when one is there, and forgets those that are gone.
local function note(list, lasts_ms)
  redis.call('ZREMRANGEBYSCORE', list, '-inf', int(now))
  redis.call('ZADD', list, int(now + lasts_ms), A.name)
  if redis.call('PTTL', list) < lasts_ms then
    redis.call('PEXPIRE', list, int(lasts_ms))
  end
end

if A.op == 'look' then
  local kept = redis.call('GET', entry)
  if kept then
    return { 'hit', kept }
  end
  if redis.call('SET', lease, A.owner, 'NX', 'PX', int(A.lease_ms)) then
    note(leases, A.lease_ms)
    return { 'lead' }
  end
  return { 'wait' }
end

if redis.call('GET', lease) ~= A.owner then
  return 0
end
if A.op == 'renew' then
  redis.call('PEXPIRE', lease, int(A.lease_ms))
  note(leases, A.lease_ms)
  return 1
end
redis.call('DEL', lease)
redis.call('ZREM', leases, A.name)
if A.op == 'keep' then
  redis.call('SET', entry, A.entry, 'PX', int(A.ttl_ms))
  note(index, A.ttl_ms)
  -- The index is bounded: those that would be gone first go.
  local excess = redis.call('ZCARD', index) - A.most
  if excess > 0 then
    local first = redis.call('ZPOPMIN', index, excess)
    for i = 1, #first, 2 do
      redis.call('DEL', index .. ':' .. first[i])
    end
  end
  return 1
end
return 0
