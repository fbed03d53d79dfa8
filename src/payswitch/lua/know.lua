-- Know: writes the processors that workers know, even out of memory.
--
-- KEYS: the hash; ARGV: for the audit trail, if an operator has changed them: act ('' for none), who,
--   its object, why; then names and URLs

demand('hash', KEYS[1])
demand('stream', AUDIT)
write_even_out_of_memory()
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
if ARGV[1] ~= '' then record_act(unpack(ARGV, 1, 4)) end
