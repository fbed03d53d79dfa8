-- History: adds one sample of the cluster to those of the last minutes.
--
-- KEYS: the generation, the list; ARGV: the sample (JSON), how many to keep, for how long (ms)

write_even_out_of_memory()
redis.call('RPUSH', KEYS[2], ARGV[1])
redis.call('LTRIM', KEYS[2], -ARGV[2], -1)
redis.call('PEXPIRE', KEYS[2], ARGV[3])
