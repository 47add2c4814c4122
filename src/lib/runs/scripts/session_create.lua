-- Creates a session whose data key `agent.state` already holds.
--
-- A: session, key (wrapped), context? (sealed), subject?, metadata? (JSON text), budget?, ttl_ms, key_id,
--    generation, claim? = { key, owner }
-- Returns { created in ms, expires in ms }, or {} when the claim is another attempt's by now

if A.claim and redis.call('HGET', key('idem', A.claim.key), 'owner') ~= A.claim.owner then
  return {}
end
local name = key('ses', A.session)
if redis.call('EXISTS', name) == 0 then
  redis.call('HSET', name, 'gen', A.generation, 'seq', 0, 'key', A.key, 'created', int(now), 'ttl_ms', A.ttl_ms,
    'key_id', A.key_id, 'live', 0)
  if A.context then redis.call('HSET', name, 'context', A.context) end
  if A.subject then redis.call('HSET', name, 'subject', A.subject) end
  if A.budget then redis.call('HSET', name, 'budget', int(A.budget)) end
  if A.metadata then redis.call('HSET', name, 'metadata', A.metadata) end
  redis.call('ZADD', B .. ':sessions', 0, A.session)
  redis.call('PEXPIRE', name, A.ttl_ms)
end
return { int(now), int(now + A.ttl_ms) }
