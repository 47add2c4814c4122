-- The owner of a run tells a piece of what its model writes: to who listens now, and to nobody later.
-- It has no id and no place in the history. Only the owner is heard, so that nothing follows the run's
-- end and no two workers' pieces mix.
--
-- A: run, owner, data (JSON text)
-- Returns how many listened; -1 when the run is not this owner's any more.

local f = redis.call('HMGET', key('run', A.run), 'owner', 'session')
if f[1] ~= A.owner then
  return -1
end
return redis.call('SPUBLISH', key('ch', f[2]), '{"type":"llm.delta","session_id":"' .. f[2] .. '","run_id":"' .. A.run
  .. '","ts":' .. int(now) .. ',"data":' .. A.data .. '}')
