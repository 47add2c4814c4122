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
-- What Kafka has not acknowledged stays until it has, with the fields that see to it, and nothing else.
local kept = {
  status = true, session = true, outbox_next = true, outbox_len = true, outbox_due = true, outbox_since = true,
}
for _, id in ipairs(runs) do
  local name, left, gone = key('run', id), false, {}
  for _, field in ipairs(redis.call('HKEYS', name)) do
    if string.sub(field, 1, 2) == 'o:' then
      left = true
    elseif not kept[field] then
      gone[#gone + 1] = field
    end
  end
  if not left then
    redis.call('DEL', name)
    redis.call('ZREM', B .. ':timers', id)
  elseif #gone > 0 then
    redis.call('HDEL', name, unpack(gone))
  end
  redis.call('ZREM', B .. ':runs', id)
end
redis.call('DEL', name, key('ev', A.session), key('ord', A.session), key('sruns', A.session))
redis.call('ZREM', B .. ':sessions', A.session)
return { #runs, pending }
