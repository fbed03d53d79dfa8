-- Select: writes the selection, only for the holder of the health check's lock.
--
-- KEYS: the generation, the lock, the selection; ARGV: token, selection (JSON), its life (ms)
-- Returns: 1 if it was written

write_even_out_of_memory()
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
return 1
