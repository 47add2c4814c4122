-- Writes what `agent.state` already holds, if the lock under which it was read and produced is still held.
--
-- KEYS[1] is the tenant's base key. ARGV[1] is JSON:
--   lock, owner, hash, fields = { name = text }, gone = { name, … }, list?, member?
-- Returns 1, or 0 when the lock was lost: nothing is written then.

local B = KEYS[1]
local A = cjson.decode(ARGV[1])
local lock = B .. ':' .. A.lock
if redis.call('GET', lock) ~= A.owner then
  return 0
end
local hash = B .. ':' .. A.hash
for name, text in pairs(A.fields) do
  redis.call('HSET', hash, name, text)
end
if #A.gone > 0 then
  redis.call('HDEL', hash, unpack(A.gone))
end
if A.list then
  redis.call('SADD', B .. ':' .. A.list, A.member)
end
redis.call('DEL', lock)
return 1
