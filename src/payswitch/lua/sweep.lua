-- Sweep: queues each open payment without a queue entry, and restores the pace of the lines that wait
-- for processors. Nothing relies on it; it repairs unforeseen faults and returns the repairs.
--
-- ARGV: rank of the first open payment to check, how many; the processors' names
-- Returns: how many were checked, ids that were queued again, ids that left the backlog, the state of
--   each of those ('' if it has no record any more)

write_even_out_of_memory()
local now = now_ms()
local first, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local current = generation()
local requeued, dropped, states = {}, {}, {}

local ids = redis.call('ZRANGE', OPEN, first, first + count - 1)
for _, id in ipairs(ids) do
  if not redis.call('ZSCORE', QUEUE, id) then
    local known = redis.pcall('HMGET', 'payment:' .. id, 'generation', 'state')
    local state = not known.err and known[1] == current and known[2] or ''
    if state == 'queued' or state == 'processing' then
      redis.call('ZADD', QUEUE, now, id)
      requeued[#requeued + 1] = id
    else
      redis.call('ZREM', OPEN, id)
      dropped[#dropped + 1] = id
      states[#states + 1] = state
    end
  end
end
for i = 3, #ARGV do keep_pace(ARGV[i], now) end
if #requeued > 0 then wake_a_worker() end
return { #ids, requeued, dropped, states }
