-- Sweep: an open payment that has no queue entry gets one. Nothing relies on it; it repairs what
-- nobody foresaw, and says how much that was.
--
-- ARGV: rank of the first open payment to look at, how many
-- Returns: how many were looked at, ids that were queued again, ids that had no record

write_even_out_of_memory()
local now = now_ms()
local first, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local current = generation()
local requeued, dropped = {}, {}

local ids = redis.call('ZRANGE', OPEN, first, first + count - 1)
for _, id in ipairs(ids) do
  if not redis.call('ZSCORE', QUEUE, id) then
    local known = redis.call('HMGET', 'payment:' .. id, 'generation', 'state')
    if known[1] == current and (known[2] == 'queued' or known[2] == 'processing') then
      redis.call('ZADD', QUEUE, now, id)
      requeued[#requeued + 1] = id
    else
      redis.call('ZREM', OPEN, id)
      dropped[#dropped + 1] = id
    end
  end
end
if #requeued > 0 then wake_a_worker() end
return { #ids, requeued, dropped }
