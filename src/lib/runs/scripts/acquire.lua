-- A worker takes up a run. Grants a lease to `owner` when the run may start, and with it makes the
-- worker's first step, so that acquiring and reserving are one transition.
--
-- A: run, session, owner, lease_ms, stage, max_deliveries, not_after, spec (JSON text), plan?,
--    kind, turn, created, deadline, parallel, traceparent?, key_id, budget?, retry_of?,
--    begin = { set, events, reserve = { { call, bound, model }, … } }
-- Returns { outcome, fields, wrapped key, outbox } with fields as name, value, name, value, …: the
-- journal, and what counts
-- outcomes: acquired, resumed, poisoned | waiting, busy, parked, stale, ended, expired

local COUNTS = { deliveries = true, retries = true, open = true }
local JOURNAL = { ['s:'] = true, ['m:'] = true, ['b:'] = true }

local function reply(outcome, R)
  local fields = {}
  if R then
    for name, value in pairs(R.f) do
      if COUNTS[name] or JOURNAL[string.sub(name, 1, 2)] then
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
    end
  end
  local session_key = R and session_of(R.f.session).f.key or ''
  return { outcome, fields, session_key, pending }
end

-- What an earlier owner left behind is produced before anything new; consumers know it by its id.
local function left_in_outbox(R)
  for name, entry in pairs(R.f) do
    if string.sub(name, 1, 2) == 'o:' then
      pending[#pending + 1] = { R.id, string.sub(name, 3), entry }
    end
  end
  table.sort(pending, function(a, b) return tonumber(a[2]) < tonumber(b[2]) end)
end

local R = load_run(A.run, { 'begun', 'begun_by' })
if R and (R.f.begun == A.stage or A.kind == 'agent' or A.retry_of) then
  R = load_whole_run(A.run) -- there may be a journal to go on with
end
if not R then
  -- Redis has lost the run, or never had it: the command is all there is.
  if now > A.not_after or not session_of(A.session).f.gen then
    return reply('expired')
  end
  R = add_run(A, A.created)
  if A.turn > 0 then
    -- What the turns before did is lost with it: going on would repeat it.
    end_run(R, 'failed', failure('journal_lost', 'Redis lost what the run had done so far'))
    return reply('ended', R)
  end
  if A.retry_of and not take_over_steps(R, A.retry_of) then
    -- Its finished steps are not known any more, and must not be made again.
    end_run(R, 'failed', failure('retry_source_lost', 'the run whose finished steps it takes over is gone'))
    return reply('ended', R)
  end
end

if is_terminal(R) then
  return reply('ended', R)
end
if R.f.stage ~= A.stage or num(R, 'turn') ~= A.turn then
  return reply('stale', R)
end
if R.f.owner and num(R, 'lease') > now and R.f.owner ~= A.owner then
  return reply('busy', R)
end
if num(R, 'deadline') <= now then
  end_run(R, 'timed_out', failure('timed_out', 'the run did not end within its timeout'))
  return reply('ended', R)
end
if R.f.cancel then
  end_run(R, 'cancelled', '{}')
  return reply('ended', R)
end
if R.f.wake_at and num(R, 'wake_at') > now then
  return reply('parked', R)
end
if not R.f.parallel and redis.call('LINDEX', key('ord', R.f.session), 0) ~= R.id then
  set(R, 'parked', 'session')
  save(R)
  return reply('waiting', R)
end
if not take_key_slot(R) then
  set(R, 'parked', 'key')
  save(R)
  return reply('waiting', R)
end
if redis.call('SISMEMBER', B .. ':live', R.id) == 0 then
  if redis.call('SCARD', B .. ':live') >= max_live() then
    redis.call('ZADD', B .. ':wait', R.f.created, R.id)
    set(R, 'parked', 'tenant')
    save(R)
    return reply('waiting', R)
  end
  redis.call('SADD', B .. ':live', R.id)
end
if R.f.parked == 'tenant' then
  redis.call('ZREM', B .. ':wait', R.id)
end

unset(R, 'parked')
unset(R, 'wake_at')
if R.f.owner ~= A.owner then
  -- The same owner asks again when it did not hear the answer.
  set(R, 'deliveries', num(R, 'deliveries') + 1)
end
set(R, 'owner', A.owner)
set(R, 'lease', now + A.lease_ms)
if num(R, 'deliveries') > A.max_deliveries then
  save(R)
  return reply('poisoned', R)
end
local outcome = 'resumed'
local events = {}
if R.f.begun == A.stage then
  left_in_outbox(R)
  if R.f.begun_by == A.owner then
    outcome = 'acquired'
  else
    close_calls(R, events)
  end
  set(R, 'status', A.stage == 'plan' and 'planning' or 'executing') -- it may have been parked
else
  -- Here the outbox holds only what the stage before is producing at this moment.
  outcome = 'acquired'
  local scope = reserve(R, A.begin.reserve)
  if scope then
    end_run(R, 'failed', failure('budget_exceeded', 'the budget of the ' .. scope .. ' has no room for the call'))
    return reply('ended', R)
  end
  set(R, 'begun', A.stage)
  set(R, 'begun_by', A.owner)
  if not R.f.started then
    set(R, 'started', now)
  end
  set(R, 'status', A.stage == 'plan' and 'planning' or 'executing')
  for name, value in pairs(A.begin.set) do
    set(R, name, value)
  end
  for _, event in ipairs(A.begin.events) do
    events[#events + 1] = event
  end
end
-- No step is begun here that must be on Kafka before it is called.
emit(R, events, true)
save(R)
return reply(outcome, R)
