-- Erases a session: cancels its runs, then removes it, its history, its runs and its data key.
--
-- A: session
-- Returns { runs erased, outbox }

local name = key('ses', A.session)
if redis.call('EXISTS', name) == 0 then
  return { 0, {} }
end
local runs = redis.call('ZRANGE', key('sruns', A.session), 0, -1)
for _, id in ipairs(runs) do
  local R = load_run(id)
  if R and not is_terminal(R) then
    end_run(R, 'cancelled', '{"reason":"session_deleted"}')
  end
end
local erased = {}
for _, id in ipairs(runs) do
  redis.call('DEL', key('run', id))
  redis.call('ZREM', B .. ':timers', id)
  redis.call('ZREM', B .. ':runs', id)
  erased[id] = true
end
redis.call('DEL', name, key('ev', A.session), key('ord', A.session), key('sruns', A.session))
redis.call('ZREM', B .. ':sessions', A.session)
-- The terminal events are told to Kafka all the same; there is no run left to hold them in an outbox.
return { #runs, pending }
