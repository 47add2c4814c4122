-- The API could not get a run's command onto the topic: ends the run, unless a worker already has it.
--
-- A: run, data
-- Returns { outcome, outbox }; outcomes: abandoned, taken

local R = load_run(A.run)
if not R or is_terminal(R) or R.f.owner or R.f.status ~= 'queued' then
  return { 'taken', pending }
end
end_run(R, 'failed', A.data)
return { 'abandoned', pending }
