-- Bury: a payment that can't be paid becomes a dead letter. Only the holder of its lease may do so,
-- and never while a try may still be recorded: an open try that has not ended, until the horizon has
-- passed by both Redis' clock and the holder's. Pin and tries stay.
--
-- ARGV: the longest delay of a processor (ms); then for each payment: id, token, generation, reason,
--   closed tries, ended tries, '1' if the horizon has passed by the holder's clock, the outcome of
--   the last try (see remember_tries)
-- Returns for each payment: 'buried', 'open' (a try may still be recorded), 'lost', 'gone'

demand_queues()
write_even_out_of_memory()
local now = now_ms()
local current = generation()
local answer = {}

local function may_be_recorded_later(open)
  for _, mark in string.gmatch(open, '(%d+)(e?)') do
    if mark == '' then return true end
  end
  return false
end

for i = 2, #ARGV, 8 do
  local id, token, of, reason = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local record = 'payment:' .. id
  local known = redis.pcall('HMGET', record, 'generation', 'token', 'open', 'horizon', 'tries',
    'delay', 'processor')
  local verdict
  if known.err or known[1] ~= current or of ~= current then
    verdict = 'gone'
  elseif known[2] ~= token then
    verdict = 'lost'
  else
    local open = changed_tries(known[3] or '', ARGV[i + 4], ARGV[i + 5])
    remember_tries(record, now, known[7] or '', known[3] or '', ARGV[i + 4], ARGV[i + 7])
    redis.call('HSET', record, 'open', open)
    local later = math.max(0, ARGV[1] - counted_delay(known[6], known[5]))
    local horizon = tonumber(known[4] or '0') or math.huge
    local horizon_passed = ARGV[i + 6] == '1' and horizon + later <= now
    if may_be_recorded_later(open) and not horizon_passed then
      verdict = 'open'
    else
      leave_queue({ id })
      redis.call('HDEL', record, 'token', 'lease_until')
      redis.call('HSET', record, 'state', 'dead', 'reason', reason, 'dead_at', now)
      redis.call('ZADD', DEAD, now, id)
      verdict = 'buried'
    end
  end
  answer[#answer + 1] = verdict
end
return answer
