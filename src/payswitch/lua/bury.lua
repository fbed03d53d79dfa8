-- Bury: a payment that won't be paid ends: as a dead letter, which waits for a person and keeps pin and
-- tries, or declined by its provider, which is final. Only the holder of its lease may do so, and never
-- while a try may still be recorded: an open try that has not ended, until the horizon has passed by
-- both Redis' clock and the holder's. A decline is then kept for later in the record, and also if it
-- comes without the lease: nobody else may be tried. A payment whose decline is kept ends declined as
-- soon as no try is open, whatever its holder has found; so does a dead letter, unless an operator has
-- resolved it.
--
-- ARGV: the longest delay of a processor (ms), retention (ms); then for each payment: id, token,
--   generation, 'dead' or 'declined', reason (the provider's code if declined), closed tries, marked
--   tries, '1' if the horizon has passed by the holder's clock, the outcome of the last try (see
--   remember_tries)
-- Returns for each payment: 'buried', 'open' (a try may still be recorded), 'lost', 'gone'

demand_queues()
write_even_out_of_memory()
local now = now_ms()
local current = generation()
local answer = {}

local function may_be_recorded_later(open)
  for _, mark in string.gmatch(open, '(%d+)(%a?)') do
    if mark ~= 'e' then return true end
  end
  return false
end

local function bury(id, record, state, reason, processor)
  leave_queue({ id })
  redis.call('HDEL', record, 'token', 'lease_until')
  if state == 'dead' then
    redis.call('HSET', record, 'state', 'dead', 'reason', reason, 'dead_at', now)
    redis.call('ZADD', DEAD, now, id)
  else
    redis.call('HDEL', record, 'open', 'horizon', 'quiet', 'delay', 'pending_at')
    redis.call('HSET', record, 'state', 'declined', 'declined', reason, 'declined_at', now)
    redis.call('PEXPIRE', record, ARGV[2])
    redis.pcall('HINCRBY', DECLINES, processor, 1)
  end
end

for i = 3, #ARGV, 9 do
  local id, token, of, state, reason, closed, marked = unpack(ARGV, i, i + 6)
  local record = 'payment:' .. id
  local known = redis.pcall('HMGET', record, 'generation', 'token', 'open', 'horizon', 'tries',
    'delay', 'processor', 'state', 'declined', 'resolved_at')
  local verdict
  if known.err or known[1] ~= current or of ~= current then
    verdict = 'gone'
  elseif known[2] ~= token then
    verdict = 'lost'
    local is_unpaid = known[8] == 'queued' or known[8] == 'processing' or known[8] == 'dead'
    if state == 'declined' and is_unpaid then
      local open = changed_tries(known[3] or '', closed, marked, true)
      local ends = known[8] == 'dead' and open == '' and not known[10]
      if ends then leave_the_dead(id, record) end
      remember_tries(record, now, known[7] or '', known[3] or '', closed, ARGV[i + 8], 'declined')
      if ends then
        bury(id, record, state, reason, known[7] or '')
      else
        redis.call('HSET', record, 'open', open, 'declined', reason)
      end
    end
  else
    local open = changed_tries(known[3] or '', closed, marked, state == 'declined')
    remember_tries(record, now, known[7] or '', known[3] or '', closed, ARGV[i + 8],
      state == 'declined' and 'declined')
    redis.call('HSET', record, 'open', open)
    if known[9] and open == '' then state, reason = 'declined', known[9] end
    local later = math.max(0, ARGV[1] - counted_delay(known[6], known[5]))
    local horizon = tonumber(known[4] or '0') or math.huge
    local horizon_passed = ARGV[i + 7] == '1' and horizon + later <= now
    if may_be_recorded_later(open) and not horizon_passed then
      if state == 'declined' then redis.call('HSET', record, 'declined', reason) end
      verdict = 'open'
    else
      bury(id, record, state, reason, known[7] or '')
      verdict = 'buried'
    end
  end
  answer[#answer + 1] = verdict
end
return answer
