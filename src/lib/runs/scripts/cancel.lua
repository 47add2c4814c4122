-- A client cancels a run: at once when no worker has it, else through its worker's next renewal.
--
-- A: gate, run, mode = 'graceful' | 'force', audit (JSON text), tenant, audit_id
-- Returns { refused, code, rule, limit rows } | { outcome, limit rows, status, outbox, kind? };
-- outcomes: cancelled, cancelling, ended

local refusal, found = gate()
if refusal then
  return refusal
end
local R = load_run(A.run)
if not R or not R.f.stage then
  return { 'refused', 'not_found', 'run', found.rows, found.role }
end
if is_terminal(R) then
  return { 'ended', found.rows, R.f.status, pending }
end
local leased = R.f.owner and num(R, 'lease') > now
put(R, 'audit.logs', A.tenant, A.audit_id, 'agenthub.audit', nil,
  completed(A.audit, found.role, leased and 202 or 200))
if leased then
  if R.f.cancel ~= 'force' then
    set(R, 'cancel', A.mode)
  end
  set(R, 'status', 'cancelling')
  save(R)
  return { 'cancelling', found.rows, 'cancelling', pending }
end
local kind = redis.call('HGET', key('run', R.id), 'kind')
end_run(R, 'cancelled', '{}')
return { 'cancelled', found.rows, 'cancelled', pending, kind }
