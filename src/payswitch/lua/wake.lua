-- Wake: makes payments that wait for a processor due now, the longest waiting first.
--
-- ARGV, for each processor: its name, how many

write_even_out_of_memory()
local now = now_ms()
local woken = false

for i = 1, #ARGV, 2 do
  woken = bring_forward(WAITING .. ARGV[i], tonumber(ARGV[i + 1]), now) or woken
end
if woken then wake_a_worker() end
