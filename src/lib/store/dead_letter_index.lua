-- Puts a dead letter into its tenant's index, once, and lets the oldest ones go.
--
-- A: id, at (milliseconds, as text), keep (letters), fields (name, value, name, value, …)

local index = KEYS[1] .. ':dlq'
local A = cjson.decode(ARGV[1])
local letter = index .. ':' .. A.id

if redis.call('EXISTS', letter) == 1 then
  return 0
end
redis.call('HSET', letter, unpack(A.fields))
redis.call('ZADD', index, A.at, A.id)
local excess = redis.call('ZCARD', index) - A.keep
if excess > 0 then
  local oldest = redis.call('ZPOPMIN', index, excess)
  for i = 1, #oldest, 2 do
    redis.call('DEL', index .. ':' .. oldest[i])
  end
end
return 1
