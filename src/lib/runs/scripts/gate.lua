-- The gate: key status, role and rate limits, checked inside the script that acts on the request, so
-- that governing a request costs no round trip of its own. A refusal changes nothing.
--
-- A.gate: key_id, secret_hash, roles (who may), ip? (as text of bits), model?, tools? (that the request
--         cannot do without), tools_allowed? (by the request), not_before?, cost (0: look only),
--         key_rules, tenant_rules = { { limit, window_ms }, … } as defaults
--
--   key:<id>  hash    the API key
--   tenant    hash    limits of the tenant
--   rl:<who>:<window> string  a ring of `limit` timestamps (8 bytes each) behind a header of four
--             numbers: accepted so far, first of them inside the window, its time, when the key expires

-- Entries of a ring that are read at once.
local CHUNK = 16

-- One sliding window. Returns whether it accepts, how many more it would, and the milliseconds until
-- one place is free; `write` (a closure) puts the new timestamp in.
local function window(name, limit, span)
  local full = name .. ':' .. int(span)
  local count, tail, tail_at, expires = 0, 0, 0, 0
  local head = redis.call('GETRANGE', full, 0, 31)
  if #head == 32 then
    count, tail, tail_at, expires = struct.unpack('>dddd', head)
  end
  local at = math.max(now, A.gate.not_before or 0)
  local from = at - span
  local ring = function(i) return 32 + (i % limit) * 8 end
  if count - tail > limit then
    tail = count - limit -- the limit was lowered
    tail_at = 0
  end
  local chunk, start = '', tail
  while tail < count and tail_at <= from do
    -- Entries leave the window in order; each is passed over once.
    if tail_at > 0 then
      tail = tail + 1
    end
    if tail < count and (tail - start) * 8 >= #chunk then
      if #chunk > 0 then
        local newest = redis.call('GETRANGE', full, ring(count - 1), ring(count - 1) + 7)
        if #newest == 8 and struct.unpack('>d', newest) <= from then
          tail = count -- all of them have left
          break
        end
      end
      start = tail
      local entries = math.min(CHUNK, count - tail, limit - tail % limit) -- a ring: not beyond its end
      chunk = redis.call('GETRANGE', full, ring(tail), ring(tail) + entries * 8 - 1)
    end
    if tail < count then
      local at = (tail - start) * 8
      -- A slot that was never written (the limit was raised, and the ring is read anew) is long past.
      tail_at = #chunk >= at + 8 and math.max(struct.unpack('>d', chunk, at + 1), 1) or 1
    end
  end
  local free = limit - (count - tail)
  local write = function()
    redis.call('SETRANGE', full, ring(count), struct.pack('>d', at))
    if tail == count then
      tail_at = at
    end
    local renew = expires < at + span
    if renew then
      expires = at + 2 * span
    end
    redis.call('SETRANGE', full, 0, struct.pack('>dddd', count + 1, tail, tail_at, expires))
    if renew then
      redis.call('PEXPIRE', full, int(2 * span))
    end
  end
  local reset = free > 0 and span or (tail_at + span - at)
  if tail < count then
    reset = tail_at + span - at
  end
  return free > 0, free, reset, write
end

-- The JSON text of an audit record, with what only the script knows: the role and what is answered.
local function completed(record, role, status)
  local known = '{"role":"' .. role .. '"'
  if status then
    known = known .. ',"status":' .. int(status)
  end
  return known .. (#record > 2 and ',' or '') .. string.sub(record, 2)
end

local function contains(list, wanted)
  for _, item in ipairs(list) do
    if item == wanted then
      return true
    end
  end
  return false
end

-- A list of the key's record; nil when the key has none, and everything is allowed.
local function allowed(text)
  return text and text ~= '' and cjson.decode(text) or nil
end

-- Returns nil and what was found (the role, where the limits stand, the tools that both the request and
-- its key allow, and the models that the key allows: nil for all), or a refusal { 'refused', code, rule, limit rows, role? }.
-- Limit rows are { rule, limit, window, remaining, reset in ms }, in the order of checking.
local function gate()
  local g = A.gate
  local name = key('key', g.key_id)
  local k = share(name, 'hash', 'status', 'role', 'expires', 'old_hash', 'old_until', 'limits', 'used', 'tools',
    'models', 'nets', 'budget').f
  local valid = k.hash and k.status == 'active'
    and (k.hash == g.secret_hash or (k.old_hash == g.secret_hash and tonumber(k.old_until or 0) > now))
    and (not k.expires or k.expires == '' or tonumber(k.expires) > now)
  if not valid then
    return { 'refused', 'unauthenticated', 'api_key', {} }
  end
  local found = { role = k.role, tools = g.tools_allowed, rows = {} }
  local function forbidden(rule)
    return { 'refused', 'forbidden', rule, {}, k.role }
  end
  local nets = allowed(k.nets)
  if nets then
    local inside = false
    for _, net in ipairs(nets) do
      inside = inside or (g.ip and string.sub(g.ip, 1, #net) == net)
    end
    if not inside then
      return forbidden('ips_allowed')
    end
  end
  if not contains(g.roles, k.role) then
    return forbidden('role')
  end
  local models = allowed(k.models)
  found.models = models
  if models and g.model and not contains(models, g.model) then
    return forbidden('models_allowed')
  end
  local tools = allowed(k.tools)
  if tools then
    for _, tool in ipairs(g.tools or {}) do
      if not contains(tools, tool) then
        return forbidden('tools_allowed')
      end
    end
    local both = {}
    for _, tool in ipairs(g.tools_allowed or tools) do
      if contains(tools, tool) then
        both[#both + 1] = tool
      end
    end
    if #both == 0 then
      return forbidden('tools_allowed')
    end
    found.tools = both
  end
  if g.cost == 0 then
    return nil, found
  end
  local rules = {}
  local key_rules = allowed(k.limits)
  local tenant_rules
  local custom = tenant()
  key_rules = key_rules or (custom.per_key and cjson.decode(custom.per_key)) or g.key_rules
  tenant_rules = (custom.per_tenant and cjson.decode(custom.per_tenant)) or g.tenant_rules
  for _, rule in ipairs(key_rules) do
    rules[#rules + 1] = { 'key', key('rl', 'key.' .. g.key_id), rule.limit, rule.window_ms }
  end
  for _, rule in ipairs(tenant_rules) do
    rules[#rules + 1] = { 'tenant', B .. ':rl:tenant', rule.limit, rule.window_ms }
  end
  local writes, free, refused = {}, {}, nil
  for i, rule in ipairs(rules) do
    local accepts, places, reset, write = window(rule[2], rule[3], rule[4])
    writes[i], free[i] = write, math.max(0, places)
    found.rows[i] = { rule[1], rule[3], rule[4], accepts and places - 1 or 0, math.ceil(reset) }
    if not accepts and (not refused or reset > refused.reset) then
      refused = { rule = rule[1] .. '_rate_limit', reset = reset }
    end
  end
  if refused then
    for i in ipairs(rules) do
      found.rows[i][4] = free[i] -- nothing was taken
    end
    return { 'refused', 'rate_limited', refused.rule, found.rows, k.role }
  end
  for _, write in ipairs(writes) do
    write()
  end
  if tonumber(k.used or 0) < now - 60000 then
    redis.call('HSET', name, 'used', int(now))
  end
  return nil, found
end
