-- Claim: due payments get a lease with a token that no lease ever had, and are due again when the
-- lease ends, so that a worker's death gives them back by itself.
--
-- ARGV: how many at most, the lease (ms), the longest delay of a processor (ms)
-- Returns: now (ms), generation, { override, selection } (each or nil), when the next is due (ms,
--   or nil), token, ids of strays; then for each payment: id, job (or nil), score, job_try, cents,
--   accepted_at, processor, requested_at, open tries, horizon, number of tries, quiet time,
--   replayed_at, by how much horizon and quiet time must be later for that delay (ms)

demand_queues()
local limit, lease, max_delay = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
local current = generation()
local selection = redis.call('MGET', OVERRIDE, SELECTION)

if redis.call('EXISTS', PURGING, PAUSED) > 0 then
  local rest = redis.call('EXISTS', PURGING) == 1 and 50 or redis.call('PTTL', PAUSED)
  return { now, current, selection, rest >= 0 and now + rest + 1, 0, {} }
end

redis.call('DEL', WAKE)
local due = redis.call('ZRANGEBYSCORE', QUEUE, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
local strays = {}
local answer = { now, current, selection, false, 0, strays }
if #due > 0 then
  answer[5] = redis.call('INCR', TOKEN)
end

-- Not ours to pay: another application's job on this queue (left for whom it is for, tried again
-- later), an entry without a job (nothing to keep), or a record that somebody spoilt. What is settled or dead isn't paid again,
-- whoever queued it.
local function put_aside(id)
  strays[#strays + 1] = id
  if redis.call('EXISTS', 'arq:job:' .. id) == 1 then
    redis.call('ZADD', QUEUE, 'XX', now + 60000, id)
  else
    redis.call('ZREM', QUEUE, id)
  end
end

local ends = now + lease
local leases = {}
local waited_for = {}
for i = 1, #due, 2 do
  local id = due[i]
  local record = 'payment:' .. id
  local known = redis.pcall('HMGET', record, 'generation', 'cents', 'accepted_at', 'processor',
    'requested_at', 'open', 'horizon', 'tries', 'quiet', 'state', 'replayed_at', 'delay')
  if known.err or known[1] ~= current or not (tonumber(known[2]) and tonumber(known[3])) then
    put_aside(id)
  elseif known[10] == 'settled' or known[10] == 'dead' then
    strays[#strays + 1] = id
    redis.call('ZREM', QUEUE, id)
  else
    leases[#leases + 1] = ends
    leases[#leases + 1] = id
    redis.call('HSET', record, 'state', 'processing', 'token', answer[5], 'lease_until', ends)
    redis.call('SET', 'arq:in-progress:' .. id, answer[5], 'PX', lease)
    if known[4] and known[6] and known[6] ~= '' then
      redis.pcall('ZREM', WAITING .. known[4], id)
      waited_for[known[4]] = true
    end
    local job_try = redis.pcall('INCR', 'arq:retry:' .. id)
    local job = redis.pcall('GET', 'arq:job:' .. id)
    if type(job_try) == 'table' then job_try = 1 end
    if type(job) == 'table' then job = false end
    answer[#answer + 1] = { id, job, due[i + 1], job_try, known[2], known[3], known[4], known[5],
      known[6], known[7], known[8], known[9], known[11],
      math.max(0, max_delay - counted_delay(known[12], known[8])) }
  end
end
if #leases > 0 then
  redis.call('ZADD', QUEUE, 'XX', unpack(leases))
  redis.call('ZADD', IN_FLIGHT, unpack(leases))
end
for processor in pairs(waited_for) do keep_pace(processor, now) end

local next_due = redis.call('ZRANGE', QUEUE, 0, 0, 'WITHSCORES')[2]
if next_due then
  answer[4] = next_due
  if tonumber(next_due) <= now then wake_a_worker() end
end
return answer
