-- Claim: due payments get a lease with the token of this call, which no other call ever had. They are
-- due again when the lease ends, so that a dead worker's payments return by themselves.
--
-- A payment's first try can be opened in the same step, before anything is sent, as route.lua would do
-- next: if the payment has none yet, and the selection is still the one by which the worker chose its
-- processor. No other call has this claim's token, so it is the id of the try as well.
--
-- ARGV: how many at most, the lease (ms), the longest delay of a processor (ms), the token, the processor
--   for first tries ('' for none), the override and the selection by which it was chosen (each '' for
--   none), the age (ms) from which a payment gets no first try, how many held payments to make due, and
--   the processors for which they are held
-- Returns names and values: now (ms), generation, selection ({ override, selection }, each or nil; nil
--   in a cluster, where both are in another slot), next_due (ms, or nil), strays (their ids), fields,
--   payments. A payment is a list of values
--   in the order of `fields`, so that each name is sent once; `later` is the time (ms) to add to
--   horizon and quiet time for that delay.

local FIELDS = { 'id', 'job', 'score', 'job_try', 'later', 'cents', 'accepted_at', 'processor',
  'requested_at', 'open', 'horizon', 'tries', 'quiet', 'deadline_from', 'declined', 'metadata',
  'first_at' }

demand_queues()
local limit, lease, max_delay = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local token = ARGV[4]
local now = now_ms()
local current = generation()
local selection = TAG == '' and redis.call('MGET', OVERRIDE, SELECTION)
local opens_at = ARGV[5]
if selection and ((selection[1] or '') ~= ARGV[6] or (selection[2] or '') ~= ARGV[7]) then
  opens_at = ''
end
local opens_from = now - tonumber(ARGV[8])

if redis.call('EXISTS', PURGING, PAUSED) > 0 then
  local rest = redis.call('EXISTS', PURGING) == 1 and 50 or redis.call('PTTL', PAUSED)
  return { 'now', now, 'generation', current, 'selection', selection,
    'next_due', rest >= 0 and now + rest + 1, 'strays', {}, 'fields', FIELDS, 'payments', {} }
end

redis.call('DEL', WAKE)
for i = 10, #ARGV do bring_forward(HELD .. ARGV[i], tonumber(ARGV[9]), now) end
local due = redis.call('ZRANGEBYSCORE', QUEUE, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
local strays, payments = {}, {}

-- In a cluster, the keys of an id without the tag may be on another node.
local function is_ours(id)
  return string.sub(id, 1, #TAG) == TAG
end

local function read(id, record)
  return is_ours(id) and redis.pcall('HMGET', record, 'generation', 'state', 'delay', 'cents',
    'accepted_at', 'processor', 'requested_at', 'open', 'horizon', 'tries', 'quiet', 'replayed_at',
    'declined', 'metadata', 'held', 'pending_at') or {}
end

-- For entries without a sound record of ours. If there is a job, it may be another application's: it
-- stays and is due again later. Without a job, the entry leaves the queue.
local function put_aside(id)
  strays[#strays + 1] = id
  if not is_ours(id) or redis.call('EXISTS', 'arq:job:' .. id) == 1 then
    redis.call('ZADD', QUEUE, 'XX', now + 60000, id)
  else
    redis.call('ZREM', QUEUE, id)
  end
end

local ends = whole(now + lease)
local horizon_at_first, quiet_at_first = whole(now + lease + max_delay), whole(lease + max_delay)
local leases, jobs = {}, {}
local waited_for = {}
for i = 1, #due, 2 do
  local id = due[i]
  local record = 'payment:' .. id
  local born, state, delay, cents, accepted_at, processor, requested_at, open, horizon, tries, quiet,
    replayed_at, declined, metadata, held, pending_at = unpack(read(id, record))
  if born ~= current or not (tonumber(cents) and tonumber(accepted_at)) then
    put_aside(id)
  elseif state == 'settled' or state == 'dead' or state == 'declined' then
    strays[#strays + 1] = id
    redis.call('ZREM', QUEUE, id)
  else
    leases[#leases + 1] = ends
    leases[#leases + 1] = id
    local due_from = pending_at or replayed_at or accepted_at
    local is_tried = opens_at ~= '' and tonumber(due_from) and tonumber(due_from) > opens_from
      and not (tries or processor or horizon or quiet or declined) and (open or '') == ''
    if is_tried then
      redis.call('HSET', record, 'state', 'processing', 'token', token, 'lease_until', ends,
        'processor', opens_at, 'requested_at', whole(now), 'open', token, 'tries', '1',
        'horizon', horizon_at_first, 'quiet', quiet_at_first, 'delay', ARGV[3] .. ' 1')
    else
      redis.call('HSET', record, 'state', 'processing', 'token', token, 'lease_until', ends)
    end
    redis.call('SET', 'arq:in-progress:' .. id, token, 'PX', ARGV[2])
    if processor and open and open ~= '' then
      redis.pcall('ZREM', WAITING .. processor, id)
      waited_for[processor] = true
    end
    if held then redis.pcall('ZREM', HELD .. string.match(held, '^%S*'), id) end
    jobs[#jobs + 1] = 'arq:job:' .. id
    jobs[#jobs + 1] = 'arq:retry:' .. id
    payments[#payments + 1] = { id, false, due[i + 1], 1,
      math.max(0, max_delay - counted_delay(delay, tries)), cents, accepted_at, processor,
      requested_at, open, horizon, tries, quiet, pending_at or replayed_at, declined,
      metadata, is_tried and opens_at or false }
  end
end
if #leases > 0 then
  redis.call('ZADD', QUEUE, 'XX', unpack(leases))
  redis.call('ZADD', IN_FLIGHT, unpack(leases))
  local known, counts = redis.call('MGET', unpack(jobs)), {}
  for n, payment in ipairs(payments) do
    payment[2], payment[4] = known[2 * n - 1], (tonumber(known[2 * n]) or 0) + 1
    counts[#counts + 1] = jobs[2 * n]
    counts[#counts + 1] = whole(payment[4])
  end
  redis.call('MSET', unpack(counts))
end
for processor in pairs(waited_for) do keep_pace(processor, now) end

local next_due = redis.call('ZRANGE', QUEUE, 0, 0, 'WITHSCORES')[2]
if next_due and tonumber(next_due) <= now then wake_a_worker() end
return { 'now', now, 'generation', current, 'selection', selection, 'next_due', next_due or false,
  'strays', strays, 'fields', FIELDS, 'payments', payments }
