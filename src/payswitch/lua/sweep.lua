-- Sweep: an open payment that has no queue entry gets one, and a line of those that wait for a
-- processor its pace. Nothing relies on it; it repairs what nobody foresaw, and says how much that was.
--
-- ARGV: rank of the first open payment to look at, how many; the processors' names
-- Returns: how many were looked at, ids that were queued again, ids that left the backlog,
--   the state of each ('' where it has no record any more)

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
