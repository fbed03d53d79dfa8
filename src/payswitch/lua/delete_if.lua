-- Delete if: removes a key only while it holds what the caller put there, so that a lock is
-- released by its holder alone.
--
-- KEYS: the key; ARGV: its value. Returns: 1 if it was removed

if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
