-- Shows the head of a partition's audit chain, unless a later one is there.
--
-- A: partition (text), sequence, head (JSON text)

local heads = KEYS[1] .. ':audit:heads'
local A = cjson.decode(ARGV[1])
local shown = redis.call('HGET', heads .. ':seq', A.partition)

if shown and tonumber(shown) > A.sequence then
  return nil
end
redis.call('HSET', heads .. ':seq', A.partition, string.format('%.0f', A.sequence))
redis.call('HSET', heads, A.partition, A.head)
return nil
