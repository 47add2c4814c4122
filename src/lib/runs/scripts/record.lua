-- The owner of a run records what it did and reserves what it does next, in one transition.
--
-- A: run, owner, number (of this transition under this owner), acked = { n, … }, set = { field = value }, unset = { field, … }, events,
--    records = { { topic, key, id, type, value } }, usage = { input, output, cost }?,
--    next? = { to = 'execute', plan, set } | { to = 'park', wake_at } | { to = 'end', status, data, state? }
-- Returns { outcome, cancel, outbox }; outcomes: recorded, lost, ended
--
-- A repeat of a transition whose answer was lost changes nothing and answers as the first did; what
-- it left in the outbox is found by the sweeper.

local R = load_run(A.run)
if not R then
  return { 'lost', '', pending }
end
local token = A.owner .. '/' .. int(A.number)
if R.f.did == token then
  return { 'recorded', R.f.cancel or '', pending }
end
if A.usage then
  -- Money was spent whoever owns the run by now.
  local name = key('run', R.id)
  local ses = key('ses', R.f.session)
  local exists = redis.call('EXISTS', ses) == 1
  for field, amount in pairs(A.usage) do
    redis.call('HINCRBY', name, field, int(amount))
    if exists then
      redis.call('HINCRBY', ses, field, int(amount))
    end
  end
end
acknowledge(R, A.acked)
for _, r in ipairs(A.records) do
  put(R, r.topic, r.key, r.id, r.type, nil, r.value)
end
if is_terminal(R) or R.f.owner ~= A.owner then
  save(R)
  return { is_terminal(R) and 'ended' or 'lost', '', pending }
end

set(R, 'did', token)
for name, value in pairs(A.set) do
  set(R, name, value)
end
for _, name in ipairs(A.unset) do
  R.f[name] = R.f[name] or '' -- journal fields are not loaded
  unset(R, name)
end
set(R, 'deliveries', 0)
emit(R, A.events)

local next = A.next
if next and next.to == 'execute' then
  unset(R, 'owner')
  unset(R, 'lease')
  set(R, 'stage', 'execute')
  set(R, 'plan', next.plan)
  set(R, 'wake', 0)
  command(R)
elseif next and next.to == 'park' then
  unset(R, 'owner')
  unset(R, 'lease')
  set(R, 'wake_at', next.wake_at)
  set(R, 'status', 'retry_wait')
elseif next and next.to == 'end' then
  end_run(R, next.status, next.data, next.state)
  return { 'recorded', '', pending }
end
save(R)
return { 'recorded', R.f.cancel or '', pending }
