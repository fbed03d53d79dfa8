-- Wake: makes payments that wait for a processor due now, the longest waiting first.
--
-- ARGV, for each processor: its name, how many

write_even_out_of_memory()
local now = now_ms()
local woken = false

for i = 1, #ARGV, 2 do
  local key, left = WAITING .. ARGV[i], tonumber(ARGV[i + 1])
  while left > 0 do
    local waiting = redis.pcall('ZPOPMIN', key, left)
    if waiting.err or #waiting == 0 then break end
    for j = 1, #waiting, 2 do
      if redis.call('ZSCORE', QUEUE, waiting[j]) == waiting[j + 1] then
        redis.call('ZADD', QUEUE, 'XX', now, waiting[j])
        woken = true
        left = left - 1
      end
    end
  end
end
if woken then wake_a_worker() end
