-- Somebody knows what became of a step whose outcome is unknown, and says so. The run has ended and stays as
-- it ended; a retry of it builds on what is said here.
--
-- A: gate, run, step, was (JSON text of the step's entry as it was read), entry (JSON text), audit (JSON text),
--    tenant, audit_id
-- Returns { refused, code, rule, limit rows } | { resolved, limit rows, outbox }

local refusal, found = gate()
if refusal then
  return refusal
end
local field = 's:' .. A.step
local R = load_run(A.run, { field })
if not R or not R.f.stage then
  return { 'refused', 'not_found', 'run', found.rows, found.role }
end
if not is_terminal(R) or R.f[field] ~= A.was then
  return { 'refused', 'not_unknown', 'step', found.rows, found.role }
end
set(R, field, A.entry)
put(R, 'audit.logs', A.tenant, A.audit_id, 'agenthub.audit', nil, completed(A.audit, found.role))
save(R)
return { 'resolved', found.rows, pending }
