-- What workers share of their circuit breakers. Only those that are not closed are here.
--
--   brk         hash  name -> '<milliseconds until which it is open> <times in a row that it opened>'
--   brk:<name>  zset  probe -> milliseconds until which it counts as under way
--
-- A: op = 'read' | 'open' | 'close' | 'probe' | 'done', name?, lasts_ms?, trips?, probe?, limit?, forget_ms
-- read  -> { name, milliseconds until probes pass (0: they do), trips, … }
-- probe -> 1 when the probe may be made, else 0
-- others -> 0

local A = cjson.decode(ARGV[1])
local key = KEYS[1] .. ':brk'
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function int(n)
  return string.format('%.0f', n)
end

local function parse(text)
  local until_ms, trips = string.match(text, '^(%d+) (%d+)$')
  return tonumber(until_ms or 0), tonumber(trips or 0)
end

if A.op == 'read' then
  local flat = redis.call('HGETALL', key)
  local found = {}
  for i = 1, #flat, 2 do
    local until_ms, trips = parse(flat[i + 1])
    if until_ms + A.forget_ms < now then
      -- Nobody has asked for it since: it closes.
      redis.call('HDEL', key, flat[i])
    else
      found[#found + 1] = flat[i]
      found[#found + 1] = int(math.max(0, until_ms - now))
      found[#found + 1] = int(trips)
    end
  end
  return found
end

local probes = key .. ':' .. A.name
if A.op == 'open' then
  local until_ms, trips = parse(redis.call('HGET', key, A.name) or '')
  until_ms = math.max(until_ms, now + A.lasts_ms)
  redis.call('HSET', key, A.name, int(until_ms) .. ' ' .. int(math.max(trips, A.trips)))
  if redis.call('PTTL', key) < A.lasts_ms + A.forget_ms then
    redis.call('PEXPIRE', key, int(A.lasts_ms + A.forget_ms))
  end
  redis.call('DEL', probes)
elseif A.op == 'close' then
  redis.call('HDEL', key, A.name)
  redis.call('DEL', probes)
elseif A.op == 'done' then
  redis.call('ZREM', probes, A.probe)
elseif A.op == 'probe' then
  local until_ms = parse(redis.call('HGET', key, A.name) or '')
  if until_ms > now then
    return 0 -- it has opened again meanwhile
  end
  redis.call('ZREMRANGEBYSCORE', probes, '-inf', int(now))
  if redis.call('ZCARD', probes) >= A.limit then
    return 0
  end
  redis.call('ZADD', probes, int(now + A.lasts_ms), A.probe)
  redis.call('PEXPIRE', probes, int(A.lasts_ms))
  return 1
end
return 0
