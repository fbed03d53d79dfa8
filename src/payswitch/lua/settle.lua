-- Settle: a payment enters the ledger once, with the instant that its processor recorded, and
-- leaves queue and backlog in the same step. Proof from the pinned processor settles whoever
-- brings it, lease or not. Proof that matches no pin is kept as an incident.
--
-- ARGV: retention (ms); then for each payment: id, generation, processor, requested_at (ms)
-- Returns for each payment: 'settled', 'known' (it was settled before), 'gone' (purged), 'incident'
--   (it matches no pin, or nothing is known of the payment)

demand_queues()
write_even_out_of_memory()
local now = now_ms()
local retention = ARGV[1]
local current = generation()
local answer = {}

-- The ledger is a tree of sums by requestedAt: each node is a hash of up to 100 entries, each
-- entry the cents (field n) and the count (field n#) of 100 entries of the node below, down to
-- single milliseconds. summary.lua reads it.
local sums = {}
local function add(key, field, value)
  local node = sums[key]
  if not node then
    node = {}
    sums[key] = node
  end
  node[field] = (node[field] or 0) + value
end

local function enter(processor, requested_at, cents, count)
  local root = 'ledger:' .. processor .. ':' .. current .. ':'
  local index, width = requested_at, 1
  for _ = 1, 5 do
    local above = math.floor(index / 100)
    local key = root .. string.format('%.0f:%.0f', width, above)
    local field = string.format('%d', index - above * 100)
    add(key, field, cents)
    add(key, field .. '#', count)
    index, width = above, width * 100
  end
  local field = string.format('%.0f', index)
  add(root .. 'top', field, cents)
  add(root .. 'top', field .. '#', count)
  add(root .. 'total', 'cents', cents)
  add(root .. 'total', 'count', count)
end

-- What was routed in one call has one requestedAt, and is entered as one sum.
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
end

-- The newest are kept: a processor that answers for payments that were never pinned to it must not
-- fill the memory.
local function incident(id, state, pin, processor, requested_at)
  redis.call('RPUSH', INCIDENTS, cjson.encode({
    correlationId = id, at = now, state = state or '', pinned = pin or '', paidBy = processor,
    requestedAt = requested_at, what = 'proof of payment that matches no pin or no record' }))
  redis.call('LTRIM', INCIDENTS, -10000, -1)
end

-- What is to be settled, each id once.
local to_settle = {}

local function judge(i)
  local id, of, processor, requested_at = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if of ~= current then return 'gone' end
  if to_settle[id] then return 'known' end
  local known = redis.pcall('HMGET', 'payment:' .. id, 'generation', 'state', 'processor', 'cents')
  if not known.err and known[1] and known[1] ~= current then return 'gone' end
  local is_known = not known.err and tonumber(known[4])
  if not is_known or known[3] ~= processor then
    incident(id, known[2], known[3], processor, requested_at)
    return 'incident'
  end
  if known[2] == 'settled' then return 'known' end
  collect(processor, requested_at, tonumber(known[4]))
  to_settle[id] = { requested_at = requested_at, was = known[2] }
  return 'settled'
end

for i = 2, #ARGV, 4 do answer[#answer + 1] = judge(i) end

for _, sum in pairs(of_an_instant) do
  enter(sum.processor, sum.requested_at, sum.cents, sum.count)
end
for key in pairs(sums) do demand('hash', key) end
for key, node in pairs(sums) do
  for field, value in pairs(node) do
    redis.call('HINCRBY', key, field, string.format('%.0f', value))
  end
end
local ids = {}
for id in pairs(to_settle) do ids[#ids + 1] = id end
leave_queue(ids)
for id, settled in pairs(to_settle) do
  local record = 'payment:' .. id
  if settled.was == 'dead' then redis.call('ZREM', DEAD, id) end
  redis.call('HDEL', record, 'token', 'lease_until', 'open', 'horizon', 'quiet', 'delay',
    'reason', 'dead_at')
  redis.call('HSET', record, 'state', 'settled', 'requested_at', settled.requested_at,
    'settled_at', now)
  redis.call('PEXPIRE', record, retention)
end
return answer
