-- A client reads: the gate, and what it asks for, in one round trip.
--
-- A: gate, want = 'nothing' | 'run' | 'runs' | 'sessions' | 'session_key', id?, list?, before?, limit?
-- Returns { refused, … } | { found, limit rows, role, now, value } where value is
-- a run's fields and its session's wrapped key; a list of { id, fields, wrapped key }; or a wrapped key.

local refusal, found = gate()
if refusal then
  return refusal
end

local function without_outbox(flat)
  local fields = {}
  for i = 1, #flat, 2 do
    if string.sub(flat[i], 1, 2) ~= 'o:' then
      fields[#fields + 1] = flat[i]
      fields[#fields + 1] = flat[i + 1]
    end
  end
  return fields
end

local function session_key(fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'session' then
      return redis.call('HGET', key('ses', fields[i + 1]), 'key') or ''
    end
  end
  return ''
end

local value = {}
if A.want == 'run' then
  local fields = without_outbox(redis.call('HGETALL', key('run', A.id)))
  if #fields == 0 or redis.call('HEXISTS', key('run', A.id), 'spec') == 0 then
    return { 'refused', 'not_found', 'run', found.rows, found.role }
  end
  value = { fields, session_key(fields) }
elseif A.want == 'session_key' then
  local wrapped = redis.call('HGET', key('ses', A.id), 'key')
  if not wrapped then
    return { 'refused', 'not_found', 'session', found.rows, found.role }
  end
  value = { wrapped }
elseif A.want == 'runs' or A.want == 'sessions' then
  local list = A.want == 'sessions' and (B .. ':sessions') or (A.id and key('sruns', A.id) or (B .. ':runs'))
  local kind = A.want == 'sessions' and 'ses' or 'run'
  local from = A.before and ('(' .. A.before) or '+'
  for _, id in ipairs(redis.call('ZRANGE', list, from, '-', 'BYLEX', 'REV', 'LIMIT', 0, A.limit)) do
    local flat = redis.call('HGETALL', key(kind, id))
    if #flat > 0 then
      local fields = without_outbox(flat)
      value[#value + 1] = { id, fields, kind == 'run' and session_key(fields) or '' }
    else
      redis.call('ZREM', list, id) -- it expired
    end
  end
end
return { 'found', found.rows, found.role, int(now), value }
