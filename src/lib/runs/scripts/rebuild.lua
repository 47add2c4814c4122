-- Restores a session and those of its runs that have not ended, after its history and its ended runs.
-- All of it at once: a worker finds the session with its runs, or finds no session.
--
-- The head of the session's order, and runs that wait for no other, get one of the tenant's slots and
-- a timer that is due at once: a sweeper emits their commands. The others wait for their place.
--
-- A: session, fields = { name = text }, ttl_ms, runs = { { id, fields = { name = text } }, … } in the
--    order of their admission
-- Returns whether it was restored: 0 when the session is there already.

local name = key('ses', A.session)
if redis.call('EXISTS', name) == 1 then
  return 0
end
for field, value in pairs(A.fields) do
  redis.call('HSET', name, field, value)
end
redis.call('HSET', name, 'live', #A.runs)
redis.call('ZADD', B .. ':sessions', 0, A.session)
for _, run in ipairs(A.runs) do
  local R = new_run(run.id)
  for field, value in pairs(run.fields) do
    set(R, field, value)
  end
  redis.call('ZADD', B .. ':runs', 0, R.id)
  redis.call('ZADD', key('sruns', A.session), 0, R.id)
  if not R.f.parallel then
    redis.call('RPUSH', key('ord', A.session), R.id)
  end
  if not R.f.parallel and redis.call('LINDEX', key('ord', A.session), 0) ~= R.id then
    set(R, 'parked', 'session')
  elseif redis.call('SCARD', B .. ':live') < max_live() then
    redis.call('SADD', B .. ':live', R.id)
    set(R, 'wake_at', now)
  else
    redis.call('ZADD', B .. ':wait', R.f.created, R.id)
    set(R, 'parked', 'tenant')
  end
  save(R)
end
if #A.runs == 0 then
  age_session(A.session, A.ttl_ms)
end
return 1
