-- Release: any worker may record its findings about a payment's tries; only the holder of its lease
-- gives the payment back to the queue.
--
-- A payment that waits for a processor goes behind the others that do. wake.lua brings the next ones
-- forward as soon as one of them makes progress. A payment's deadline begins again whenever its
-- processor says that the payment is pending.
--
-- A payment that is held for a processor is due when its patience is over, so that payments go
-- elsewhere at the pace at which they came. claim.lua brings them forward once the processor works.
--
-- ARGV, for each payment: id, token, generation, delay (ms), closed tries, marked tries, error, the
--   processor that it waits for ('' for none), the outcome of its last try (see remember_tries), and ''
--   or the processor that it is held for with the one that would take it now, such as
--   'default fallback'
-- Returns for each payment: 'released', 'noted' (the lease is another's), 'gone'

demand_queues()
write_even_out_of_memory()
local now = now_ms()
local current = generation()
local answer = {}
local soon = false

-- The due time of a payment that waits for this processor and could be tried again at `at`. After a
-- clock was set forward and back, it is at most 2 * PACE for each waiting payment later than `at`.
local function place(processor, at)
  local key = WAITING .. processor
  local last = redis.pcall('ZRANGE', key, -1, -1, 'WITHSCORES')
  if last.err or not last[2] then return at end
  local latest = at + 2 * PACE * redis.call('ZCARD', key)
  return math.min(math.max(at, tonumber(last[2]) + PACE), latest)
end

for i = 1, #ARGV, 10 do
  local id, token, of, delay = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local closed, marked, problem = ARGV[i + 4], ARGV[i + 5], ARGV[i + 6]
  local record = 'payment:' .. id
  local known = redis.pcall('HMGET', record, 'generation', 'token', 'open', 'state',
    'processor')
  local verdict
  if known.err or known[1] ~= current or of ~= current or known[4] == 'settled' then
    verdict = 'gone'
  else
    remember_tries(record, now, known[5] or '', known[3] or '', closed, ARGV[i + 8])
    if known[3] then
      local open = changed_tries(known[3], closed, marked)
      redis.call('HSET', record, 'open', open)
      if string.find(marked, 'p', 1, true) and open ~= '' then
        redis.call('HSET', record, 'pending_at', now)
      end
    end
    if known[2] == token then
      if problem ~= '' then redis.call('HSET', record, 'last_error', problem) end
      redis.call('HDEL', record, 'token', 'lease_until')
      redis.call('HSET', record, 'state', 'queued')
      redis.call('DEL', 'arq:in-progress:' .. id)
      redis.call('ZREM', IN_FLIGHT, id)
      local due, processor, held = now + delay, ARGV[i + 7], ARGV[i + 9]
      if processor ~= '' then
        due = place(processor, due)
        redis.pcall('ZADD', WAITING .. processor, due, id)
      end
      if held ~= '' then
        redis.call('HSET', record, 'held', held)
        redis.pcall('ZADD', HELD .. string.match(held, '^%S+'), due, id)
      end
      redis.call('ZADD', QUEUE, 'XX', due, id)
      if processor ~= '' then keep_pace(processor, now + delay - PACE) end
      soon = soon or due < now + 1000
      verdict = 'released'
    else
      verdict = 'noted'
    end
  end
  answer[#answer + 1] = verdict
end
if soon then wake_a_worker() end
return answer
