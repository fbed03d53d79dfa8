-- Vitals: one process says that it lives and what it has counted; silent for its life, it is gone.
--
-- KEYS: its hash; ARGV: its life (ms), then the hash's fields and values
-- Returns: now (ms)

write_even_out_of_memory()
local now = now_ms()
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('ZADD', 'vitals', now, KEYS[1])
redis.call('ZREMRANGEBYSCORE', 'vitals', '-inf', now - ARGV[1])
return now
