-- The owner of a run records what it did and reserves what it does next, in one transition.
--
-- A: run, owner, number (of this transition under this owner), progress (whether anything was done),
--    acked = { n, … }, set = { field = value }, unset = { field, … }, events,
--    records = { { topic, key, id, type, value } }, letter? (a record, kept where this ends the run), settle = { { call, cost?, … } }, reserve = { { call, bound, model } },
--    next? = { to = 'execute', plan } | { to = 'plan', turn } | { to = 'park', wake_at } | { to = 'end', status, data, state? }
-- Returns { outcome, cancel, outbox, refused } with refused as call, scope, call, scope, …; outcomes:
-- recorded, lost, ended
--
-- A repeat of a transition whose answer was lost changes nothing and answers as the first did; what
-- it left in the outbox is found by the sweeper.

local mark = 'did:' .. A.owner
local further = { mark }
for _, list in ipairs({ A.settle, A.reserve }) do
  for _, c in ipairs(list) do
    further[#further + 1] = 'b:' .. c.call
  end
end
if A.next and A.next.to == 'execute' or A.next and A.next.to == 'plan' then
  further[#further + 1] = 'spec' -- for the command
end
local R = load_run(A.run, further)
if not R then
  return { 'lost', '', pending, {} }
end
local refused = {}
-- The mark is the number of the last transition; below zero when it was discarded.
if math.abs(num(R, mark)) >= A.number then
  for _, c in ipairs(A.reserve) do
    if not R.f['b:' .. c.call] then
      refused[#refused + 1] = c.call
      refused[#refused + 1] = '' -- which budget it was is not kept
    end
  end
  return { num(R, mark) > 0 and 'recorded' or 'lost', R.f.cancel or '', pending, refused }
end
local owned = R.f.owner == A.owner and not is_terminal(R)
set(R, mark, owned and A.number or -A.number)
local events = {}
for _, s in ipairs(A.settle) do
  settle(R, s, events) -- money was spent whoever owns the run by now
end
acknowledge(R, A.acked)
for _, r in ipairs(A.records) do
  put(R, r.topic, r.key, r.id, r.type, nil, r.value)
end
if not owned then
  save(R)
  return { is_terminal(R) and 'ended' or 'lost', '', pending, refused }
end
for _, event in ipairs(A.events) do
  events[#events + 1] = event
end

for name, value in pairs(A.set) do
  set(R, name, value)
end
for _, name in ipairs(A.unset) do
  R.f[name] = R.f[name] or '' -- journal fields are not loaded
  unset(R, name)
end
if A.progress then
  set(R, 'deliveries', 0)
end

local next = A.next
if next and next.to ~= 'end' and R.f.cancel then
  -- Nobody would hear of the cancellation while the run has no owner.
  next = { to = 'end', status = 'cancelled', data = '{}' }
end
if next and next.to == 'end' then
  local letter = A.letter
  if letter then
    put(R, letter.topic, letter.key, letter.id, letter.type, nil, letter.value)
  end
  end_run(R, next.status, next.data, next.state, events)
  return { 'recorded', '', pending, refused }
end
for _, c in ipairs(R.f.cancel and {} or A.reserve) do -- a run that is to end calls nothing
  local scope = reserve(R, { c })
  if scope then
    refused[#refused + 1] = c.call
    refused[#refused + 1] = scope
  end
end
emit(R, events)
if next and next.to == 'execute' then
  unset(R, 'owner')
  unset(R, 'lease')
  set(R, 'stage', 'execute')
  set(R, 'plan', next.plan)
  set(R, 'wake', num(R, 'wake') + 1) -- never one that a command of the same stage had before
  set(R, 'deliveries', 0)
  command(R)
elseif next and next.to == 'plan' then
  unset(R, 'owner')
  unset(R, 'lease')
  set(R, 'stage', 'plan')
  set(R, 'turn', next.turn)
  set(R, 'wake', num(R, 'wake') + 1)
  set(R, 'deliveries', 0)
  command(R)
elseif next and next.to == 'park' then
  unset(R, 'owner')
  unset(R, 'lease')
  set(R, 'wake_at', next.wake_at)
  set(R, 'status', 'retry_wait')
  set(R, 'deliveries', 0)
end
save(R)
return { 'recorded', R.f.cancel or '', pending, refused }
