-- Withdraw: ends an operator's order and wakes one worker, which wakes the next while more is due.
--
-- ARGV: the order's name; for the audit trail: act ('' for none), who, its object, why
-- Returns: 1 if there was one

demand('stream', AUDIT)
write_even_out_of_memory()
local stood = redis.call('DEL', ARGV[1] .. SUFFIX)
if stood == 1 then
  wake_a_worker()
  if ARGV[2] ~= '' then record_act(unpack(ARGV, 2, 5)) end
end
return stood
