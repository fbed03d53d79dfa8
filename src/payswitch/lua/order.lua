-- Order: writes an operator's order for as long as it holds, even out of memory.
--
-- KEYS: the generation, the order's key; ARGV: the order (JSON), its life (ms, 0 for no end); for the audit trail:
--   act, who, its object, why

demand('stream', AUDIT)
write_even_out_of_memory()
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
else
  redis.call('SET', KEYS[2], ARGV[1])
end
record_act(ARGV[3], ARGV[4], ARGV[5], ARGV[6])
