-- Withdraw: an operator's order holds no longer, and a worker that waited for its end is woken; it
-- wakes the next while more is due.
--
-- KEYS: the order's key; Returns: 1 if there was one

write_even_out_of_memory()
local stood = redis.call('DEL', KEYS[1])
if stood == 1 then wake_a_worker() end
return stood
