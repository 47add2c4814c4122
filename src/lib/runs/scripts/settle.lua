-- Settles the claim of a request that starts no run.
--
-- A: key, owner, ttl_ms, outcome = 'done' | 'refused' | 'unknown', answer? (sealed; of 'done')
-- Returns 1, or 0 when another attempt has the claim by now.

local name = key('idem', A.key)
if redis.call('HGET', name, 'owner') ~= A.owner then
  return 0
end
if A.outcome == 'done' then
  redis.call('HDEL', name, 'owner', 'lease')
  redis.call('HSET', name, 'answer', A.answer)
  redis.call('PEXPIRE', name, A.ttl_ms)
elseif A.outcome == 'unknown' then
  redis.call('HDEL', name, 'owner', 'lease') -- the next attempt may begin at once, with the same subject
else
  redis.call('DEL', name)
end
return 1
