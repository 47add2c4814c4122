-- Claims an Idempotency-Key for a request that starts no run: the gate and the claim in one round trip.
--
-- A: gate, key, fingerprint, owner (random name of this attempt), subject (what a fresh request would
--    make), lease_ms, ttl_ms
-- Returns { refused, code, rule, limit rows, role? } | { 'replay', limit rows, role, sealed answer }
--   | { 'claimed', limit rows, role, subject, whether an earlier attempt may have done its work ('0', '1') }
--
--   idem:<hash>  hash  fingerprint, subject; owner and lease while an attempt is under way, answer after it
--
-- An attempt that never settles loses the claim when its lease ends. The next one gets its subject, so
-- that both make the same thing; what the first still writes is fenced off by its owner.

local refusal, found = gate()
if refusal then
  return refusal
end
local name = key('idem', A.key)
local f = redis.call('HMGET', name, 'fingerprint', 'answer', 'lease', 'subject')
if f[1] then
  if f[1] ~= A.fingerprint then
    return { 'refused', 'idempotency_mismatch', 'idempotency_key', found.rows, found.role }
  end
  if f[2] then
    return { 'replay', found.rows, found.role, f[2] }
  end
  if tonumber(f[3] or 0) > now then
    return { 'refused', 'request_in_flight', 'idempotency_key', found.rows, found.role }
  end
end
local subject = f[4] or A.subject
redis.call('HSET', name, 'fingerprint', A.fingerprint, 'subject', subject, 'owner', A.owner, 'lease',
  int(now + A.lease_ms))
redis.call('PEXPIRE', name, A.ttl_ms)
return { 'claimed', found.rows, found.role, subject, f[1] and '1' or '0' }
