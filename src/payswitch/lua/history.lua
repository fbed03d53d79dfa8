-- History: adds one sample of the cluster to those of the last minutes.
--
-- KEYS: the list; ARGV: the sample (JSON), how many to keep, for how long (ms)

write_even_out_of_memory()
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], -ARGV[2], -1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
