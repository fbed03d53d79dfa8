-- Stop: the partition's node came back without payments that it had confirmed. From now on every
-- script refuses the partition, until `payswitch init --accept-loss`. The mark goes on far above all
-- that were confirmed, so that nobody stops the partition again for the same loss.
--
-- ARGV: none
-- Returns: nothing

write_even_out_of_memory()
redis.call('SET', 'payments:deployment' .. SUFFIX, 'behind ' .. DEPLOYMENT)
redis.call('INCRBY', 'payments:confirmed' .. SUFFIX, '1000000000000')
