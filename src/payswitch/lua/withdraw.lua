-- Withdraw: ends an operator's order and wakes one worker, which wakes the next while more is due.
--
-- KEYS: the order's key; Returns: 1 if there was one

write_even_out_of_memory()
local stood = redis.call('DEL', KEYS[1])
if stood == 1 then wake_a_worker() end
return stood
