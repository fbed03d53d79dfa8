-- Accept: a payment's record, backlog entry, job and queue entry are written together or not at all,
-- and never after the caller has given up. Payments are deduplicated here, by id.
--
-- ARGV: the largest backlog; then for each payment: id, cents, latest (ms by Redis' clock), job,
--   metadata (in canonical form, '' for none)
-- Returns: now (ms), then for each payment 'new', 'same', 'other' (another amount), 'metadata' (the
--   same amount with other metadata), 'late', 'full', 'sum' (the ledger's sums are near their limit),
--   'broken' (its key holds something else)

local backlog = size_of(OPEN)
local now = now_ms()
local current = generation()
local room = tonumber(ARGV[1]) - backlog
local is_ledger_full = redis.call('EXISTS', LEDGER_FULL) == 1
local answer = { now }
local by_time = {}
local fresh = {}
local in_this_call = {}

-- One question for all, as few payments come again. Spoilt records count as well.
local records = {}
for i = 2, #ARGV, 5 do records[#records + 1] = 'payment:' .. ARGV[i] end
local is_any_known = redis.call('EXISTS', unpack(records)) > 0

local function queue(id)
  by_time[#by_time + 1] = whole(now)
  by_time[#by_time + 1] = id
end

local function judge(i)
  local id, cents, latest, metadata = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 4]
  if now > latest then return 'late' end
  local known = in_this_call[id] or is_any_known
    and redis.pcall('HMGET', 'payment:' .. id, 'generation', 'cents', 'state', 'metadata') or {}
  if known.err then return 'broken' end
  if known[1] == current then
    if known[2] ~= cents then return 'other' end
    if (known[4] or '') ~= metadata then return 'metadata' end
    -- Every acknowledged payment must be paid: one that fell out of the backlog goes back.
    local unpaid = known[3] == 'queued' or known[3] == 'processing'
    if unpaid and not in_this_call[id] and not redis.call('ZSCORE', OPEN, id) then queue(id) end
    return 'same'
  end
  if is_ledger_full then return 'sum' end
  if room <= 0 then return 'full' end
  room = room - 1
  queue(id)
  fresh[#fresh + 1] = i
  in_this_call[id] = { current, cents, 'queued', metadata }
  return 'new'
end

for i = 2, #ARGV, 5 do answer[#answer + 1] = judge(i) end

if #by_time > 0 then
  -- The first write: if it fails, because of another type or short memory, nothing is written.
  local queued = redis.pcall('ZADD', QUEUE, unpack(by_time))
  if type(queued) == 'table' then
    demand('zset', QUEUE)
    return queued
  end
  redis.call('ZADD', OPEN, unpack(by_time))
  wake_a_worker()
end
if #fresh > 0 then
  local old, jobs = {}, {}
  for _, i in ipairs(fresh) do
    local id = ARGV[i]
    old[#old + 1] = 'payment:' .. id
    old[#old + 1] = 'arq:in-progress:' .. id
    old[#old + 1] = 'arq:retry:' .. id
    jobs[#jobs + 1] = 'arq:job:' .. id
    jobs[#jobs + 1] = ARGV[i + 3]
  end
  redis.call('DEL', unpack(old))
  redis.call('MSET', unpack(jobs))
end
for _, i in ipairs(fresh) do
  local record = 'payment:' .. ARGV[i]
  redis.call('HSET', record, 'generation', current, 'cents', ARGV[i + 1],
    'accepted_at', whole(now), 'state', 'queued')
  if ARGV[i + 4] ~= '' then redis.call('HSET', record, 'metadata', ARGV[i + 4]) end
end
return answer
