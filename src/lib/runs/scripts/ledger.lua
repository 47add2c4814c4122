-- The ledger of live runs: what the transition scripts share.
--
-- KEYS[1] is the tenant's base key, `<prefix>:{<tenant>}`. Every key is made from it, so that all of
-- a tenant's keys share one slot and each script is one atomic transition, on a cluster too.
-- ARGV[1] is the transition's arguments and ARGV[2] the installation's settings, both JSON.
--
--   run:<run>     hash    the run; `s:<step>` and `m:<call>` are its journal, `o:<n>` its outbox
--   ses:<session> hash    the session; `seq` numbers its events
--   ev:<session>  stream  the session's event history; entry ids are event ids
--   sessions      zset    the tenant's sessions; all scores are 0, ids sort by creation time
--   ord:<session> list    the session's runs in the order in which they may start
--   timers        zset    run -> milliseconds at which the sweeper must look at it; one per live run
--   live          set     runs that hold one of the tenant's slots
--   wait          zset    runs that wait for a slot, by admission time
--   live:<key>, wait:<key>  likewise for one API key, where its tenant caps its live runs
--   runs, sruns:<session>  zsets of runs, likewise
--   ch:<session>  channel the session's events as they happen

local B = KEYS[1]
local A = cjson.decode(ARGV[1])
local C = cjson.decode(ARGV[2])

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local TERMINAL = { succeeded = true, failed = true, cancelled = true, timed_out = true }

-- Outbox entries made by this script, returned to the caller, which produces them.
local pending = {}

local function int(n)
  return string.format('%.0f', n)
end

local function key(kind, id)
  return B .. ':' .. kind .. ':' .. id
end

-- The fields that decide and count; journal and outbox, which may be large, are left out.
local CONTROL = {
  'status', 'owner', 'lease', 'deadline', 'session', 'stage', 'outbox_next', 'outbox_len', 'outbox_due',
  'outbox_since', 'wake', 'wake_at', 'turn', 'cancel', 'deliveries', 'parallel', 'created', 'started', 'parked',
  'traceparent', 'open', 'key_slot', 'key_id', 'budget', 'cost_micro_usd', 'reserved_micro_usd', 'warned',
  'input_tokens', 'output_tokens', 'told',
}

-- Settles the calls that are open at their bounds; `budget.lua` has it.
local close_calls

-- Reads the fields of a hash that were not read yet. `H.f` has what is there, `H.known` what was asked.
local function read(H, names)
  local missing = {}
  for _, name in ipairs(names) do
    if not H.known[name] then
      missing[#missing + 1] = name
    end
  end
  if #missing == 0 then
    return
  end
  for i, value in ipairs(redis.call('HMGET', H.name, unpack(missing))) do
    H.known[missing[i]] = true
    H.f[missing[i]] = value or nil
  end
end

-- A run as it is made or loaded: `dirty` fields are to be written, `gone` ones to be removed.
local function new_run(id)
  return { id = id, name = key('run', id), f = {}, known = {}, dirty = {}, gone = {} }
end

-- `more` names further fields.
local function load_run(id, more)
  local R = new_run(id)
  local names = { unpack(CONTROL) }
  for _, name in ipairs(more or {}) do
    names[#names + 1] = name
  end
  read(R, names)
  if not R.f.status then
    return nil
  end
  return R
end

local function load_whole_run(id)
  local flat = redis.call('HGETALL', key('run', id))
  if #flat == 0 then
    return nil
  end
  local R = new_run(id)
  for i = 1, #flat, 2 do
    R.f[flat[i]] = flat[i + 1]
  end
  setmetatable(R.known, { __index = function() return true end }) -- all of it was read
  return R
end

local function num(R, name)
  return tonumber(R.f[name] or 0)
end

local function set(R, name, value)
  if type(value) == 'number' then
    value = int(value)
  end
  R.f[name] = value
  R.known[name] = true
  R.dirty[name] = value
  R.gone[name] = nil
end

local function unset(R, name)
  if R.f[name] then
    R.f[name] = nil
    R.known[name] = true
    R.dirty[name] = nil
    R.gone[name] = true
  end
end

-- Hashes that the parts of a transition read and write together: each is read once and written once,
-- with the run that the transition is about.
local shared = {}

local function share(name, ...)
  local H = shared[name]
  if not H then
    H = { name = name, f = {}, known = {}, dirty = {} }
    shared[name] = H
  end
  read(H, { ... })
  return H
end

local function put_shared(H, name, value)
  H.f[name] = value
  H.dirty[name] = type(value) == 'number' and int(value) or value
end

local function write_shared()
  for _, H in pairs(shared) do
    local fields = {}
    for name, value in pairs(H.dirty) do
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
    if #fields > 0 then
      redis.call('HSET', H.name, unpack(fields))
      H.dirty = {}
    end
  end
end

-- The session; without `gen` it was erased, and nothing may be written to it.
local function session_of(id)
  return share(key('ses', id), 'key', 'gen', 'seq', 'live', 'ttl_ms', 'budget', 'cost_micro_usd', 'reserved_micro_usd',
    'warned', 'input_tokens', 'output_tokens')
end

local function tenant()
  return share(B .. ':tenant', 'budget', 'max_live_runs', 'max_live_runs_per_key', 'per_key', 'per_tenant').f
end

local function is_terminal(R)
  return TERMINAL[R.f.status] == true
end

-- Appends a record to the run's outbox. `value` is JSON text.
local function put(R, topic, record_key, id, kind, not_after, value)
  local n = num(R, 'outbox_next') + 1
  set(R, 'outbox_next', n)
  set(R, 'outbox_len', num(R, 'outbox_len') + 1)
  local entry = '{"topic":"' .. topic .. '","key":"' .. record_key .. '","id":"' .. id .. '","type":"' .. kind .. '"'
  if not_after then
    entry = entry .. ',"not_after":' .. int(not_after)
  end
  if R.f.traceparent then
    entry = entry .. ',"traceparent":"' .. R.f.traceparent .. '"'
  end
  entry = entry .. ',"value":' .. value .. '}'
  set(R, 'o:' .. int(n), entry)
  if not R.f.outbox_due then
    set(R, 'outbox_due', now + C.outbox_retry_ms)
  end
  pending[#pending + 1] = { R.id, int(n), entry }
end

-- Numbers the events, appends them to the session's history, publishes them, and puts them into the
-- outbox as one record. Each is { type, data, step, attempt, state }; `data` is JSON text.
--
-- With `later` the record waits for the run's next transition, and is one with that of its events: a record
-- less for Kafka where nothing depends on its being there.
local function emit(R, events, later)
  local waits = R.f.told
  if #events == 0 and (later or not waits) then
    return
  end
  local session = R.f.session
  local S = session_of(session)
  local generation = S.f.gen
  if not generation then
    return -- the session was erased, and its history with it
  end
  local seq = tonumber(S.f.seq)
  local first, told, kept = generation .. '-' .. int(seq + 1), {}, {}
  if waits then
    first, kept[1] = string.match(waits, '^(%S+) (.*)$')
  end
  for i, event in ipairs(events) do
    local id = generation .. '-' .. int(seq + i)
    local text = '{"id":"' .. id .. '"'
    if seq + i > 1 then
      text = text .. ',"prev":"' .. generation .. '-' .. int(seq + i - 1) .. '"'
    end
    text = text .. ',"type":"' .. event.type .. '","session_id":"' .. session .. '","run_id":"' .. R.id .. '"'
    if event.step then
      text = text .. ',"step_id":"' .. event.step .. '"'
    end
    if event.attempt then
      text = text .. ',"attempt":' .. int(event.attempt)
    end
    text = text .. ',"ts":' .. int(now) .. ',"data":' .. event.data
    told[i] = text .. '}'
    redis.call('XADD', key('ev', session), 'MAXLEN', '~', C.history, id, 'e', told[i])
    kept[#kept + 1] = event.state and (text .. ',"state":"' .. event.state .. '"}') or told[i]
  end
  if #told > 0 then
    put_shared(S, 'seq', seq + #told)
    redis.call('SPUBLISH', key('ch', session), '[' .. table.concat(told, ',') .. ']')
  end
  local texts = table.concat(kept, ',')
  if later then
    set(R, 'told', first .. ' ' .. texts)
    return
  end
  unset(R, 'told')
  put(R, 'agent.events', session, R.id .. '/events/' .. first, 'agenthub.events', nil,
    '{"v":1,"events":[' .. texts .. ']}')
end

-- A session does not expire while a run of it is live; afterwards its time begins anew.
local function keep_session(session)
  redis.call('PERSIST', key('ses', session))
  redis.call('PERSIST', key('ev', session))
  redis.call('PERSIST', key('sruns', session))
end

local function age_session(session, ttl_ms)
  redis.call('PEXPIRE', key('ses', session), ttl_ms)
  redis.call('PEXPIRE', key('ev', session), ttl_ms)
  redis.call('PEXPIRE', key('sruns', session), ttl_ms)
end

-- Adds a run to the ledger: the run itself, its place in the session's order, and the lists.
local function add_run(a, created)
  local R = new_run(a.run)
  set(R, 'status', 'queued')
  set(R, 'session', a.session)
  set(R, 'stage', a.stage)
  set(R, 'kind', a.kind)
  set(R, 'spec', a.spec)
  set(R, 'created', created)
  set(R, 'deadline', a.deadline)
  if a.parallel then set(R, 'parallel', '1') end
  if a.plan then set(R, 'plan', a.plan) end
  set(R, 'key_id', a.key_id)
  if a.budget then set(R, 'budget', a.budget) end
  if a.traceparent then set(R, 'traceparent', a.traceparent) end
  redis.call('ZADD', B .. ':runs', 0, R.id) -- ids sort by creation time
  redis.call('ZADD', key('sruns', a.session), 0, R.id)
  if not a.parallel then
    redis.call('RPUSH', key('ord', a.session), R.id)
  end
  local S = session_of(a.session)
  put_shared(S, 'live', tonumber(S.f.live or 0) + 1)
  if S.f.live == 1 then
    keep_session(a.session)
  end
  return R
end

-- Whether a step of an agent failed by what its tool said, and not because its run ended: that is a part of
-- the conversation.
local function is_told_failure(step)
  return step.status == 'failed' and step.code ~= 'cancelled' and step.code ~= 'budget_exceeded'
end

-- Copies what an earlier run finished: its successful steps, and of an agent the whole conversation, its
-- model's answers and the calls that failed. Returns whether that run is there.
local function take_over_steps(R, id)
  local flat = redis.call('HGETALL', key('run', id))
  local agent = R.f.kind == 'agent'
  local answers = 0
  for i = 1, #flat, 2 do
    local kind = string.sub(flat[i], 1, 2)
    if kind == 's:' then
      local step = cjson.decode(flat[i + 1])
      if step.status == 'succeeded' or (agent and is_told_failure(step)) then
        set(R, flat[i], flat[i + 1])
      end
    elseif kind == 'm:' and agent and cjson.decode(flat[i + 1]).answer ~= '' then
      set(R, flat[i], flat[i + 1])
      answers = answers + 1
    end
  end
  -- The calls of the last answer are what an executor goes on with; a planner goes on after them.
  local turn = R.f.stage == 'execute' and answers - 1 or answers
  if turn > 0 then
    set(R, 'turn', turn)
  end
  return #flat > 0
end

-- Puts the command of the run's stage into its outbox: the first one, or again after a wait.
local function command(R)
  read(R, { 'spec', R.f.stage == 'execute' and 'plan' or nil })
  local spec = R.f.spec
  local value = '{"v":1,"kind":"' .. R.f.stage .. '","wake":' .. (R.f.wake or '0') .. ',"spec":' .. spec
  if R.f.turn then
    value = value .. ',"turn":' .. R.f.turn
  end
  if R.f.stage == 'execute' then
    if R.f.plan then
      value = value .. ',"plan":"' .. R.f.plan .. '"'
    end
  end
  put(R, R.f.stage .. '.commands', R.id, R.id .. '/' .. R.f.stage .. '/' .. (R.f.wake or '0'),
    'agenthub.command.' .. R.f.stage, num(R, 'deadline'), value .. '}')
end

local function wake(R)
  set(R, 'wake', num(R, 'wake') + 1)
  unset(R, 'wake_at')
  unset(R, 'parked')
  command(R)
end

-- Writes what changed, and sets the run's one timer to the earliest time at which anything is due.
local function save(R)
  write_shared()
  local name = R.name
  local fields = {}
  for field in pairs(R.gone) do
    fields[#fields + 1] = field
  end
  if #fields > 0 then
    redis.call('HDEL', name, unpack(fields))
  end
  fields = {}
  for field, value in pairs(R.dirty) do
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  if #fields > 0 then
    redis.call('HSET', name, unpack(fields))
  end
  R.dirty, R.gone = {}, {}
  local due
  if not is_terminal(R) then
    due = num(R, 'deadline')
    if R.f.owner then
      due = math.min(due, num(R, 'lease'))
    end
    if R.f.wake_at then
      due = math.min(due, num(R, 'wake_at'))
    end
  end
  if R.f.outbox_due then
    due = math.min(due or math.huge, num(R, 'outbox_due'))
  end
  if due then
    redis.call('ZADD', B .. ':timers', int(due), R.id)
  else
    redis.call('ZREM', B .. ':timers', R.id)
  end
end

-- Removes outbox entries whose records Kafka has acknowledged.
local function acknowledge(R, numbers)
  if #numbers == 0 then
    return
  end
  local fields = {}
  for i, n in ipairs(numbers) do
    fields[i] = 'o:' .. int(n)
  end
  local removed = redis.call('HDEL', R.name, unpack(fields))
  set(R, 'outbox_len', math.max(0, num(R, 'outbox_len') - removed))
  if num(R, 'outbox_len') == 0 then
    unset(R, 'outbox_due')
    if R.f.outbox_since then
      unset(R, 'outbox_since')
    end
  end
end

local function max_live()
  return tonumber(tenant().max_live_runs or C.max_live_runs)
end

-- The runs of one key that may be live at once; nil when its tenant does not say.
local function max_live_of_key()
  return tonumber(tenant().max_live_runs_per_key or nil)
end

-- Gives a run one of its key's slots, where there are such; false when it has to wait for one.
local function take_key_slot(R)
  local cap = max_live_of_key()
  if not cap then
    return true
  end
  local id = R.f.key_id or '-'
  local mine = key('live', id)
  if redis.call('SISMEMBER', mine, R.id) == 0 then
    set(R, 'key_slot', id)
    if redis.call('SCARD', mine) >= cap then
      redis.call('ZADD', key('wait', id), R.f.created, R.id)
      return false
    end
    redis.call('SADD', mine, R.id)
  end
  redis.call('ZREM', key('wait', id), R.id)
  return true
end

-- Wakes the runs of a key that may start because one ended. Each holds its slot from here on.
local function start_next_of_key(id)
  local mine = key('live', id)
  while redis.call('SCARD', mine) < (max_live_of_key() or math.huge) do
    local waiting = redis.call('ZPOPMIN', key('wait', id))
    if not waiting[1] then
      break
    end
    local R = load_run(waiting[1])
    if R and R.f.parked == 'key' then
      redis.call('SADD', mine, R.id)
      wake(R)
      save(R)
    end
  end
end

-- Wakes the runs that may start because one ended.
local function start_next(session)
  local head = redis.call('LINDEX', key('ord', session), 0)
  if head then
    local R = load_run(head)
    if R and R.f.parked == 'session' then
      wake(R)
      save(R)
    end
  end
  while redis.call('SCARD', B .. ':live') < max_live() do
    local waiting = redis.call('ZPOPMIN', B .. ':wait')
    if not waiting[1] then
      break
    end
    local R = load_run(waiting[1])
    if R and R.f.parked == 'tenant' then
      -- It holds the slot from here on, so that no later run takes it while the command travels.
      redis.call('SADD', B .. ':live', R.id)
      wake(R)
      save(R)
    end
  end
end

-- Ends the run: its one terminal event, the release of its places, and the wake-up of the next.
-- `data` is the event's JSON text, `event_state` what a rebuild needs beside it, `before` the events
-- that the same transition tells first.
local function end_run(R, status, data, event_state, before)
  local waits = R.f.parked == 'tenant'
  set(R, 'status', status)
  set(R, 'ended', now)
  set(R, 'end', data)
  unset(R, 'owner')
  unset(R, 'lease')
  unset(R, 'wake_at')
  unset(R, 'cancel')
  unset(R, 'parked')
  local session = R.f.session
  local events = before or {}
  close_calls(R, events)
  events[#events + 1] = { type = 'run.' .. status, data = data, state = event_state }
  emit(R, events)
  redis.call('SREM', B .. ':live', R.id)
  if waits then
    redis.call('ZREM', B .. ':wait', R.id)
  end
  local of_key = R.f.key_slot
  if of_key then
    redis.call('SREM', key('live', of_key), R.id)
    redis.call('ZREM', key('wait', of_key), R.id)
  end
  if not R.f.parallel then
    redis.call('LREM', key('ord', session), 1, R.id)
  end
  local S = session_of(session)
  if S.f.gen then
    put_shared(S, 'live', tonumber(S.f.live or 0) - 1)
  end
  save(R)
  -- Not before its commands are too old to recreate it: a replay of them must find that it has ended.
  redis.call('PEXPIRE', R.name, int(math.max(C.run_retention_ms, num(R, 'deadline') - now + 1000)))
  if S.f.gen and S.f.live <= 0 then
    age_session(session, S.f.ttl_ms)
  end
  start_next(session)
  if of_key then
    start_next_of_key(of_key)
  end
end

local function failure(code, message)
  return cjson.encode({ code = code, message = message })
end
