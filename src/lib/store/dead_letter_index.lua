-- Puts a dead letter into its tenant's index, once, and lets the oldest ones go.
--
--   dlq          zset  the tenant's letters by the time at which they were given up
--   dlq:<id>     hash  one letter; `redriven` and `redriven_at` say what became of it
--   dlqg         zset  groups of equal failures by their last letter
--   dlqg:<group> zset  the letters of one group
--   dlqr         hash  run -> its letter
--
-- A: id, at (milliseconds, as text), keep (letters), group, run?, fields (name, value, name, value, …)

local B = KEYS[1]
local A = cjson.decode(ARGV[1])
local index = B .. ':dlq'
local groups = B .. ':dlqg'
local runs = B .. ':dlqr'

local function take_out(id)
  local letter = index .. ':' .. id
  local was = redis.call('HMGET', letter, 'group', 'run')
  redis.call('DEL', letter)
  if was[1] then
    redis.call('ZREM', groups .. ':' .. was[1], id)
    if redis.call('ZCARD', groups .. ':' .. was[1]) == 0 then
      redis.call('ZREM', groups, was[1])
    end
  end
  if was[2] and redis.call('HGET', runs, was[2]) == id then
    redis.call('HDEL', runs, was[2])
  end
end

local letter = index .. ':' .. A.id
if redis.call('EXISTS', letter) == 1 then
  return 0
end
redis.call('HSET', letter, unpack(A.fields))
redis.call('ZADD', index, A.at, A.id)
redis.call('ZADD', groups .. ':' .. A.group, A.at, A.id)
redis.call('ZADD', groups, 'GT', A.at, A.group)
if A.run then
  redis.call('HSET', runs, A.run, A.id)
end
local excess = redis.call('ZCARD', index) - A.keep
if excess > 0 then
  local oldest = redis.call('ZPOPMIN', index, excess)
  for i = 1, #oldest, 2 do
    take_out(oldest[i])
  end
end
return 1
