-- Money, in integer millionths of a US dollar: reserved at an upper bound before a model is called,
-- settled once per call afterwards. For each of the run, its session, its key's month and its tenant's
-- month, `spent + reserved <= limit` holds at every moment.
--
-- A call is open (its bound is reserved), then bounded (its use is not known: the bound is spent) or
-- actual (what it used is spent). `bounded` becomes `actual` when the use is told late, and nothing
-- else follows `actual`. Every change counts towards the month in which the call was reserved.
--
--   run:<run>      `b:<call>` "<state> <amount> <month> <day> <model>", `open` the open calls,
--                  `budget`, `cost_micro_usd`, `reserved_micro_usd`
--   ses:<session>  `budget`, `cost_micro_usd`, `reserved_micro_usd`
--   key:<id>, tenant   `budget` for each calendar month (UTC)
--   spend:<yyyymm> hash    `t.spent`, `t.reserved`, `<key id>.spent`, `<key id>.reserved`
--   use:<yyyymmdd> hash    `k:<key id>:<model>` and `s:<session>`: "calls input cached output reasoning cost"
--   `warned` (`t.warned`, `<key id>.warned`)  the budget's warning was told

local WARN_AT = 0.8
local USE_RETENTION_S = 400 * 86400

-- Year, month and day of a time in milliseconds. Source: Hinnant, "chrono-compatible low-level date
-- algorithms", civil_from_days.
local function civil(ms)
  local z = math.floor(ms / 86400000) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d%02d', year, month), string.format('%02d', doy - math.floor((153 * mp + 2) / 5) + 1)
end

local function tenant_name()
  return string.match(B, '{(.-)}')
end

-- The accounts that a call of the run counts towards. `month` is that of the call's reservation.
local function accounts(R, month)
  local who = R.f.key_id or '-'
  local S = session_of(R.f.session)
  local M = share(key('spend', month), 't.spent', 't.reserved', 't.warned', who .. '.spent', who .. '.reserved',
    who .. '.warned')
  local function account(scope, limit, H, spent, reserved, warned)
    return { scope = scope, limit = tonumber(limit or nil), spent = tonumber(H.f[spent] or 0),
      reserved = tonumber(H.f[reserved] or 0), warned = H.f[warned], write = function(a)
        local put = H == R and set or put_shared
        put(H, spent, a.spent)
        put(H, reserved, a.reserved)
        if a.warned then put(H, warned, '1') end
      end }
  end
  local list = { account('run', R.f.budget, R, 'cost_micro_usd', 'reserved_micro_usd', 'warned') }
  if S.f.gen then
    list[#list + 1] = account('session', S.f.budget, S, 'cost_micro_usd', 'reserved_micro_usd', 'warned')
  end
  local K = share(key('key', who), 'budget')
  list[#list + 1] = account('key', K.f.budget, M, who .. '.spent', who .. '.reserved', who .. '.warned')
  list[#list + 1] = account('tenant', tenant().budget, M, 't.spent', 't.reserved', 't.warned')
  return list
end

-- The scope whose budget has no room for `amount` more.
local function without_room(list, amount)
  for _, a in ipairs(list) do
    if a.limit and a.spent + a.reserved + amount > a.limit then
      return a.scope
    end
  end
  return nil
end

-- Reserves the bounds of calls { { call, bound, model }, … }, all or none. Returns nil, or the scope
-- whose budget has no room for them.
local function reserve(R, calls)
  local total = 0
  for _, c in ipairs(calls) do
    total = total + c.bound
  end
  if #calls == 0 then
    return nil
  end
  local month, day = civil(now)
  local list = accounts(R, month)
  local scope = without_room(list, total)
  if scope then
    return scope
  end
  for _, a in ipairs(list) do
    a.reserved = a.reserved + total
    a.write(a)
  end
  for _, c in ipairs(calls) do
    set(R, 'b:' .. c.call, table.concat({ 'open', int(c.bound), month, day, c.model }, ' '))
    set(R, 'open', (R.f.open and R.f.open .. ' ' or '') .. c.call)
  end
  return nil
end

-- Adds to the day's use. `first` when the call was not counted before.
local function count_use(R, month, day, model, first, s, delta)
  local name = key('use', month .. day)
  local fields = { 'k:' .. (R.f.key_id or '-') .. ':' .. model, 's:' .. R.f.session }
  local add = { first and 1 or 0, s.input or 0, s.cached or 0, s.output or 0, s.reasoning or 0, delta }
  local write = {}
  local used = redis.call('HMGET', name, unpack(fields))
  for i, text in ipairs(used) do
    local sums, n = {}, 0
    for number in string.gmatch(text or '0 0 0 0 0 0', '%S+') do
      n = n + 1
      sums[n] = int(tonumber(number) + add[n])
    end
    write[#write + 1] = fields[i]
    write[#write + 1] = table.concat(sums, ' ')
  end
  redis.call('HSET', name, unpack(write))
  if not used[2] then
    redis.call('EXPIRE', name, USE_RETENTION_S, 'NX') -- it may be the day's first
  end
end

-- Settles a call { call, cost?, input, cached, output, reasoning, audit? }: `cost` is absent when its
-- use is not known. Puts its usage record into the outbox and adds the warnings that are due to
-- `events`. A call that is settled already is left as it is.
local function settle(R, s, events)
  local field = 'b:' .. s.call
  read(R, { field })
  local state, amount, month, day, model = string.match(R.f[field] or '', '^(%S+) (%d+) (%d+) (%d+) (.*)$')
  if not state or state == 'actual' or (state == 'bounded' and not s.cost) then
    return
  end
  amount = tonumber(amount)
  local cost = s.cost or amount
  local delta = state == 'open' and cost or cost - amount
  for _, a in ipairs(accounts(R, month)) do
    a.spent = a.spent + delta
    if state == 'open' then
      a.reserved = math.max(0, a.reserved - amount)
    end
    if a.limit and not a.warned and a.spent >= WARN_AT * a.limit then
      a.warned = '1'
      events[#events + 1] = { type = 'budget.warning', data = cjson.encode({
        scope = a.scope, limit_micro_usd = a.limit, spent_micro_usd = a.spent }) }
    end
    a.write(a)
  end
  if s.cost then
    set(R, 'input_tokens', num(R, 'input_tokens') + s.input)
    set(R, 'output_tokens', num(R, 'output_tokens') + s.output)
    local S = session_of(R.f.session)
    if S.f.gen then
      put_shared(S, 'input_tokens', tonumber(S.f.input_tokens or 0) + s.input)
      put_shared(S, 'output_tokens', tonumber(S.f.output_tokens or 0) + s.output)
    end
  end
  local settled = s.cost and 'actual' or 'bounded'
  set(R, field, table.concat({ settled, int(cost), month, day, model }, ' '))
  local open = {}
  for call in string.gmatch(R.f.open or '', '%S+') do
    if call ~= s.call then open[#open + 1] = call end
  end
  if #open > 0 then set(R, 'open', table.concat(open, ' ')) else unset(R, 'open') end
  count_use(R, month, day, model, state == 'open', s, delta)
  -- The worker's record of the call, or one of the ledger's own; either tells the settlement.
  local record = s.audit or cjson.encode({ v = 1, id = R.id .. '/' .. s.call .. '/' .. settled, ts = now,
    action = 'model_call', tenant = tenant_name(), key_id = R.f.key_id, session_id = R.f.session, run_id = R.id,
    target = model, cost_micro_usd = cost, decision = 'allowed' })
  record = string.sub(record, 1, -2) .. ',"call":"' .. s.call .. '","settlement":"' .. settled
    .. '","delta_micro_usd":' .. int(delta) .. ',"month":"' .. month .. '"}'
  put(R, 'audit.logs', tenant_name(), R.id .. '/' .. s.call .. '/' .. settled, 'agenthub.audit', nil, record)
end

-- Nobody will tell what the open calls used, unless an earlier owner still does: their bounds are spent.
close_calls = function(R, events)
  for call in string.gmatch(R.f.open or '', '%S+') do
    settle(R, { call = call }, events)
  end
end

-- The scope whose budget is used up, so that no run may start.
local function exhausted(session, who)
  local S = session_of(session).f
  if S.budget and tonumber(S.cost_micro_usd or 0) + tonumber(S.reserved_micro_usd or 0) >= tonumber(S.budget) then
    return 'session'
  end
  local k, t = share(key('key', who), 'budget').f.budget, tenant().budget
  if k or t then
    local M = share(key('spend', (civil(now))), 't.spent', 't.reserved', who .. '.spent', who .. '.reserved').f
    if k and tonumber(M[who .. '.spent'] or 0) + tonumber(M[who .. '.reserved'] or 0) >= tonumber(k) then
      return 'key'
    end
    if t and tonumber(M['t.spent'] or 0) + tonumber(M['t.reserved'] or 0) >= tonumber(t) then
      return 'tenant'
    end
  end
  return nil
end
