-- A client reads a session: the gate, the session, and its time to live anew, in one round trip.
--
-- A: gate, session
-- Returns { refused, … } | { found, limit rows, fields, now, role }

local refusal, found = gate()
if refusal then
  return refusal
end
local name = key('ses', A.session)
local fields = redis.call('HGETALL', name)
if #fields == 0 then
  return { 'refused', 'not_found', 'session', found.rows, found.role }
end
local ttl_ms, live
for i = 1, #fields, 2 do
  if fields[i] == 'ttl_ms' then
    ttl_ms = fields[i + 1]
  elseif fields[i] == 'live' then
    live = tonumber(fields[i + 1])
  end
end
if live == 0 then
  age_session(A.session, ttl_ms)
end
return { 'found', found.rows, fields, int(now), found.role }
