-- Unlock: only the holder of a lock's token releases it.
--
-- KEYS: the lock; ARGV: the token. Returns: 1 if it was released

if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
