-- Settle: a payment enters the ledger once, with the instant that its processor recorded, and leaves
-- queue and backlog in the same step. Proof from the pinned processor settles the payment, with or
-- without a lease. Proof that matches no pin is kept as an incident, and so is proof of a payment that
-- an operator had resolved as a dead letter, or its processor declined: it may have been paid twice.
--
-- What was held for the processor that paid it also counts as saved: by that processor and the one that
-- would have taken it.
--
-- ARGV: retention (ms); then for each payment: id, generation, processor, requested_at (ms),
--   the outcome of its last try, if that did not pay (see remember_tries), the processor's reference
--   ('' for none)
-- Returns for each payment: 'settled', 'late' (settled, though it had ended otherwise), 'known' (it was settled before), 'gone' (purged), 'incident'
--   (it matches no pin, or there is no record), 'unaddable' (a sum of the ledger has another type or
--   would exceed 64 bits; nothing of the payment is changed)

demand_queues()
write_even_out_of_memory()
local now = now_ms()
local retention = ARGV[1]
local current = generation()
local answer = {}

-- The ledger is a tree of sums by requestedAt: each node is a hash of up to 100 entries, each
-- entry the cents (field n) and the count (field n#) of 100 entries of the node below, down to
-- single milliseconds, or to the finest nodes that fold.lua has left. summary.lua reads it.
local function add(sums, key, field, cents, count)
  local node = sums[key]
  if not node then
    node = {}
    sums[key] = node
  end
  local count_field = field .. '#'
  node[field] = (node[field] or 0) + cents
  node[count_field] = (node[count_field] or 0) + count
end

local function enter(sums, sum)
  local root = LEDGER .. sum.processor .. ':' .. current .. ':'
  local index, width, grain = sum.requested_at, 1, grain_at(sum.requested_at)
  for _ = 1, 5 do
    local above = math.floor(index / 100)
    if width >= grain then
      local key = root .. string.format('%.0f:%.0f', width, above)
      add(sums, key, string.format('%d', index - above * 100), sum.cents, sum.count)
    end
    index, width = above, width * 100
  end
  add(sums, root .. 'top', string.format('%.0f', index), sum.cents, sum.count)
  local total = sums[root .. 'total'] or { cents = 0, count = 0 }
  total.cents, total.count = total.cents + sum.cents, total.count + sum.count
  sums[root .. 'total'] = total
end

-- From this total on no payment is accepted, so that those already accepted still fit into 64 bits:
-- 5.2 million of the largest payments.
local FULL = 4e18
local is_full

-- Adds the sums to the ledger. A field may refuse (no integer, no hash, or more than 64 bits). Only
-- the attempt shows it, as a check of each field before would cost a fifth of the script; the caller
-- then takes all sums back. Returns the fields that refuse, by key; nil if none does.
local function write(sums)
  local refused
  for key, node in pairs(sums) do
    for field, value in pairs(node) do
      local sum = redis.pcall('HINCRBY', key, field, string.format('%.0f', value))
      if type(sum) == 'table' then
        refused = refused or {}
        refused[key] = refused[key] or {}
        refused[key][field] = true
      elseif field == 'cents' and sum >= FULL then
        is_full = true
      end
    end
  end
  return refused
end

local function take_back(sums, refused)
  for key, node in pairs(sums) do
    for field, value in pairs(node) do
      if not (refused[key] and refused[key][field]) then
        local sum = redis.call('HINCRBY', key, field, string.format('%.0f', -value))
        if sum == 0 then redis.call('HDEL', key, field) end
      end
    end
  end
end

-- Payments that were routed in one call share their requestedAt: they enter as one sum.
local of_an_instant = {}
local function collect(processor, requested_at, cents)
  local key = processor .. ' ' .. requested_at
  local sum = of_an_instant[key]
  if not sum then
    sum = { processor = processor, requested_at = tonumber(requested_at), cents = 0, count = 0 }
    of_an_instant[key] = sum
  end
  sum.cents = sum.cents + cents
  sum.count = sum.count + 1
  return sum
end

-- Only the newest incidents are kept: a processor that answers for payments that were never pinned
-- to it must not fill the memory.
local incidents = {}
local function incident(id, state, pin, processor, requested_at, what)
  incidents[#incidents + 1] = { correlationId = payment(id), at = now, state = state or '',
    pinned = pin or '', paidBy = processor, requestedAt = requested_at, what = what }
end

-- A proof that replicas did not confirm in time is brought again: its incident is noted once.
local function note_incidents()
  if #incidents == 0 then return end
  local noted = {}
  local function is_noted(entry)
    local name = table.concat({ entry.correlationId, entry.paidBy, entry.requestedAt, entry.what }, ' ')
    local was = noted[name]
    noted[name] = true
    return was
  end
  for _, text in ipairs(redis.call('LRANGE', INCIDENTS, -100, -1)) do
    pcall(function() is_noted(cjson.decode(text)) end)
  end
  for _, entry in ipairs(incidents) do
    if not is_noted(entry) then redis.call('RPUSH', INCIDENTS, cjson.encode(entry)) end
  end
  redis.call('LTRIM', INCIDENTS, -10000, -1)
end

-- The payments to settle, each id once.
local to_settle = {}

local function judge(i)
  local id, of, processor, requested_at = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if of ~= current then return 'gone' end
  if to_settle[id] then return 'known' end
  local known = redis.pcall('HMGET', 'payment:' .. id, 'generation', 'state', 'processor', 'cents',
    'held', 'declined', 'pending_at', 'noted')
  if not known.err and known[1] and known[1] ~= current then return 'gone' end
  local is_known = not known.err and tonumber(known[4])
  if not is_known or known[3] ~= processor then
    incident(id, known[2], known[3], processor, requested_at,
      'proof of payment that matches no pin or no record')
    return 'incident'
  end
  if known[2] == 'settled' then return 'known' end
  local sum = collect(processor, requested_at, tonumber(known[4]))
  to_settle[id] = { processor = processor, requested_at = requested_at, was = known[2],
    cents = tonumber(known[4]), sum = sum, tried = ARGV[i + 4], reference = ARGV[i + 5],
    held = known[5], is_marked = known[5] or known[6] or known[7] or known[8] }
  return (known[2] == 'dead' or known[2] == 'declined') and 'late' or 'settled'
end

for i = 2, #ARGV, 6 do answer[#answer + 1] = judge(i) end

local function is_refused(sum, refused)
  local own = {}
  enter(own, sum)
  for key, node in pairs(own) do
    for field in pairs(refused[key] or {}) do
      if node[field] then return true end
    end
  end
  return false
end

-- Enters all sums without a refusing field; each of the others is entered nowhere.
local function write_without(refused)
  local sums = {}
  for _, sum in pairs(of_an_instant) do
    sum.refused = is_refused(sum, refused)
    if not sum.refused then enter(sums, sum) end
  end
  for i, verdict in ipairs(answer) do
    local settled = to_settle[ARGV[6 * i - 4]]
    if settled and settled.sum.refused
      and (verdict == 'settled' or verdict == 'late' or verdict == 'known') then
      answer[i] = 'unaddable'
    end
  end
  for id, settled in pairs(to_settle) do
    if settled.sum.refused then to_settle[id] = nil end
  end
  write(sums)
end

local sums = {}
for _, sum in pairs(of_an_instant) do enter(sums, sum) end
local refused = write(sums)
if refused then
  take_back(sums, refused)
  is_full = false
  write_without(refused)
end
if is_full then redis.call('SET', LEDGER_FULL, '1') end

local saved = {}
for _, settled in pairs(to_settle) do
  if settled.held and string.match(settled.held, '^%S*') == settled.sum.processor then
    saved[settled.held] = (saved[settled.held] or 0) + settled.cents
  end
end
for held, cents in pairs(saved) do
  redis.pcall('HINCRBY', SAVED, held, string.format('%.0f', cents))
end
local ids = {}
for id in pairs(to_settle) do ids[#ids + 1] = id end
leave_queue(ids)
for id, settled in pairs(to_settle) do
  if settled.was == 'dead' and leave_the_dead(id, 'payment:' .. id) then
    incident(id, 'resolved', settled.processor, settled.processor, settled.requested_at,
      'proof of payment for a dead letter that an operator had resolved')
  elseif settled.was == 'declined' then
    redis.pcall('HINCRBY', DECLINES, settled.processor, -1)
    incident(id, 'declined', settled.processor, settled.processor, settled.requested_at,
      'proof of payment for a payment that its processor had declined')
  end
end
note_incidents()
for id, settled in pairs(to_settle) do
  local record = 'payment:' .. id
  if settled.tried ~= '' then remember_tries(record, now, '', '', '', settled.tried) end
  redis.call('HDEL', record, 'token', 'lease_until', 'open', 'horizon', 'quiet', 'delay')
  -- Few payments have any of these, and each name takes time and space in the append-only file.
  if settled.is_marked or settled.tried ~= '' or settled.was ~= 'processing' then
    redis.call('HDEL', record, 'reason', 'dead_at', 'declined', 'declined_at', 'held', 'pending_at',
      'noted')
  end
  if settled.reference ~= '' then redis.call('HSET', record, 'reference', settled.reference) end
  redis.call('HSET', record, 'state', 'settled', 'requested_at', settled.requested_at,
    'settled_at', whole(now))
  redis.call('PEXPIRE', record, retention)
end
return answer
