-- Does what is due: ends runs past their deadline, emits the commands of runs whose worker died or
-- whose wait is over, and returns outbox entries that are still there to be produced again. Each
-- run's timer moves forward in the same transition, so that no other sweeper acts on it too.
--
-- A: limit
-- Returns { outbox, actions, outbox age } with actions as name, run, kind, name, run, kind, …; the kind is
-- that of a run which ended, else empty; the age in milliseconds is that of the oldest entry to be produced again

local actions = {}
local oldest = 0
local function did(action, R, kind)
  actions[#actions + 1] = action
  actions[#actions + 1] = R.id
  actions[#actions + 1] = kind or ''
end
local function ended(action, R)
  did(action, R, redis.call('HGET', key('run', R.id), 'kind') or '')
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', B .. ':timers', '-inf', int(now), 'LIMIT', 0, A.limit)) do
  local R = load_run(id)
  if not R then
    redis.call('ZREM', B .. ':timers', id)
  else
    if R.f.outbox_due and num(R, 'outbox_due') <= now then
      local flat = redis.call('HGETALL', key('run', id))
      local entries = {}
      for i = 1, #flat, 2 do
        if string.sub(flat[i], 1, 2) == 'o:' then
          entries[#entries + 1] = { id, string.sub(flat[i], 3), flat[i + 1] }
        end
      end
      table.sort(entries, function(a, b) return tonumber(a[2]) < tonumber(b[2]) end)
      for _, entry in ipairs(entries) do
        pending[#pending + 1] = entry
      end
      -- Only what was not acknowledged at once is looked at here, so that the usual outbox costs no field.
      if not R.f.outbox_since then
        set(R, 'outbox_since', int(num(R, 'outbox_due') - C.outbox_retry_ms))
      end
      oldest = math.max(oldest, now - num(R, 'outbox_since'))
      set(R, 'outbox_len', #entries)
      set(R, 'outbox_due', now + C.outbox_retry_ms)
      did('reproduced', R)
    end
    if is_terminal(R) then
      save(R)
    elseif num(R, 'deadline') <= now then
      ended('timed_out', R)
      end_run(R, 'timed_out', failure('timed_out', 'the run did not end within its timeout'))
    elseif R.f.owner and num(R, 'lease') <= now then
      did('lease_expired', R)
      unset(R, 'owner')
      unset(R, 'lease')
      if R.f.cancel then
        ended('cancelled', R)
        end_run(R, 'cancelled', '{}')
      else
        wake(R)
        save(R)
      end
    elseif R.f.wake_at and num(R, 'wake_at') <= now then
      did('woken', R)
      wake(R)
      save(R)
    else
      save(R)
    end
  end
end
return { pending, actions, int(oldest) }
