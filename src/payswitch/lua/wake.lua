-- Wake: payments that wait for a processor are due now, those first that have waited longest. What
-- has left the queue meanwhile, or is due at another time than it was given here, is left alone.
--
-- ARGV, for each processor: its name, how many

write_even_out_of_memory()
local now = now_ms()
local woken = false

for i = 1, #ARGV, 2 do
  local waiting = redis.call('ZPOPMIN', WAITING .. ARGV[i], ARGV[i + 1])
  for j = 1, #waiting, 2 do
    if redis.call('ZSCORE', QUEUE, waiting[j]) == waiting[j + 1] then
      redis.call('ZADD', QUEUE, 'XX', now, waiting[j])
      woken = true
    end
  end
end
if woken then wake_a_worker() end
