-- Note: something for operators to read, kept also when Redis is out of memory.
--
-- KEYS: the key; ARGV: what it says

write_even_out_of_memory()
redis.call('SET', KEYS[1], ARGV[1])
