-- Accept: a payment's record, its place in the backlog, its job and its queue entry come to be
-- together or not at all, and never after the instant at which the caller has given up.
--
-- ARGV: the largest backlog; then for each payment: id, cents, latest (ms by Redis' clock), job
-- Returns: now (ms), then for each payment 'new', 'same', 'other' (another amount), 'late', 'full'

local now = now_ms()
local current = generation()
local room = tonumber(ARGV[1]) - redis.call('ZCARD', OPEN)
local answer = { now }
local by_time = {}

for i = 2, #ARGV, 4 do
  local id, cents, latest, job = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local record = 'payment:' .. id
  local known = redis.call('HMGET', record, 'generation', 'cents')
  local verdict
  if now > latest then
    verdict = 'late'
  elseif known[1] == current then
    verdict = known[2] == cents and 'same' or 'other'
  elseif room <= 0 then
    verdict = 'full'
  else
    if known[1] then
      redis.call('DEL', record, 'arq:in-progress:' .. id, 'arq:retry:' .. id)
    end
    redis.call('HSET', record, 'generation', current, 'cents', cents, 'accepted_at', now,
      'state', 'queued')
    redis.call('SET', 'arq:job:' .. id, job)
    by_time[#by_time + 1] = now
    by_time[#by_time + 1] = id
    room = room - 1
    verdict = 'new'
  end
  answer[#answer + 1] = verdict
end

if #by_time > 0 then
  redis.call('ZADD', OPEN, unpack(by_time))
  redis.call('ZADD', QUEUE, unpack(by_time))
  wake_a_worker()
end
return answer
