-- Withdraw: ends an operator's order and wakes one worker, which wakes the next while more is due.
--
-- KEYS: the generation, the order's key; ARGV, for the audit trail: act, who, its object, why
-- Returns: 1 if there was one

demand('stream', AUDIT)
write_even_out_of_memory()
local stood = redis.call('DEL', KEYS[2])
if stood == 1 then
  wake_a_worker()
  record_act(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
end
return stood
