-- Admits a request that starts a run: key, limits, idempotency, session, order, the run, its outbox
-- and its timer in one round trip.
--
-- A: gate, idempotency? = { key, fingerprint, ttl_ms }, run, session, kind, stage, spec (JSON text,
--    without what the key allows), deadline, parallel, reject, budget?, retry_of?, traceparent?, plan?, queued (JSON text of
--    run.queued's data),
--    queued_state?, audit (JSON text), redrive? = { letter, force, operator }
-- Returns { outcome, … }:
--   refused, code, rule, limit rows | replay, limit rows, run id | admitted, limit rows, outbox, role

local refusal, found
if A.redrive and A.redrive.operator then
  -- It passed the gate of its own tenant, whose keys are in another slot.
  -- The models that the run before was held to are in the specification.
  found = { role = 'admin', tools = A.gate.tools_allowed, rows = {} }
else
  refusal, found = gate()
end
if refusal then
  return refusal
end

local claim = A.idempotency and key('idem', A.idempotency.key)
if claim then
  local stored = redis.call('HMGET', claim, 'fingerprint', 'run')
  if stored[1] then
    if stored[1] ~= A.idempotency.fingerprint then
      return { 'refused', 'idempotency_mismatch', 'idempotency_key', found.rows, found.role }
    end
    return { 'replay', found.rows, stored[2] }
  end
end

local letter = A.redrive and key('dlq', A.redrive.letter)
if letter then
  local known = redis.call('HMGET', letter, 'class', 'redriven')
  if not known[1] then
    return { 'refused', 'not_found', 'letter', found.rows, found.role }
  end
  if known[2] and not A.redrive.force then
    return { 'replay', found.rows, known[2] }
  end
end

if not session_of(A.session).f.gen then
  return { 'refused', 'not_found', 'session', found.rows, found.role }
end
if A.reject and redis.call('LLEN', key('ord', A.session)) > 0 then
  return { 'refused', 'session_busy', 'on_conflict', found.rows, found.role }
end

if found.tools then
  A.spec = '{"tools_allowed":' .. cjson.encode(found.tools) .. ',' .. string.sub(A.spec, 2)
end

if found.models then
  A.spec = '{"models_allowed":' .. cjson.encode(found.models) .. ',' .. string.sub(A.spec, 2)
end

if A.retry_of then
  local status = redis.call('HGET', key('run', A.retry_of), 'status')
  if not status then
    return { 'refused', 'not_found', 'run', found.rows, found.role }
  end
  if not TERMINAL[status] or status == 'succeeded' then
    return { 'refused', 'not_retryable', status, found.rows, found.role }
  end
end
local scope = exhausted(A.session, A.gate.key_id)
if scope then
  return { 'refused', 'budget_exhausted', scope .. '_budget', found.rows, found.role }
end

if claim then
  redis.call('HSET', claim, 'fingerprint', A.idempotency.fingerprint, 'run', A.run)
  redis.call('PEXPIRE', claim, A.idempotency.ttl_ms)
end
if letter then
  redis.call('HSET', letter, 'redriven', A.run, 'redriven_at', int(now))
end
A.key_id = A.gate.key_id
local R = add_run(A, now)
if A.retry_of then
  take_over_steps(R, A.retry_of)
end
-- The command first: it is what the run waits for.
command(R)
emit(R, { { type = 'run.queued', data = A.queued, state = A.queued_state } })
put(R, 'audit.logs', A.tenant, R.id .. '/audit', 'agenthub.audit', nil, completed(A.audit, found.role))
save(R)
return { 'admitted', found.rows, pending, found.role }
