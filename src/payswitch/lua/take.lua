-- Take: SET NX PX for locks and throttles, even out of memory.
--
-- KEYS: the generation, the key; ARGV: its value, its life (ms). Returns: 1 if it was set

write_even_out_of_memory()
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
